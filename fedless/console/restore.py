"""`fedless restore FILE DIR`: a fleet's directory made of a back-up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.backup import restore as make
from fedless.console.terminal import moment

app = typer.Typer()


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `fedless backup` wrote.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's new directory.")],
) -> None:
    """Make a fleet's directory of a back-up. The aggregator of before must not run any more."""
    contents = make(file, directory, time.time_ns() // 1_000_000)
    taken = moment(contents.taken_at_ms)
    typer.echo(f"Fleet {contents.fleet!r} is in {directory}, as it was at {taken} UTC.")
    typer.echo("Open rounds and key epochs are abandoned; claims that were not used are void.")
    typer.echo(
        "What happened since is not known here: revoke again who was revoked, let join again who joined."
    )
    typer.echo(
        "Clients' privacy ledgers are charged with the most that its running tasks may have spent since; what tasks "
        "that were started since have spent is in no ledger (docs/privacy.md)."
    )
    if contents.keys_left_out:
        typer.echo("These private keys are not in the back-up; put them there (mode 0600):", err=True)
        for name in contents.keys_left_out:
            typer.echo(f"  {directory / name}", err=True)
    typer.echo(f"\n  fedless aggregator serve --fleet {directory}")
