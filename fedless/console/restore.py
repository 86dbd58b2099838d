"""`fedless restore FILE DIR`: a fleet's directory made of a back-up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from aggregator.config import PREFIX, StateSettings
from aggregator.restore import restore as make
from fedless.console.terminal import moment, progress
from fedless.protocol.errors import Code, LocalError

app = typer.Typer()


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `fedless backup` wrote.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's new directory.")],
    to: Annotated[
        str,
        typer.Option(metavar="URL", help="An empty PostgreSQL database for its state, without a password."),
    ] = "",
    to_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The password of that database.")
    ] = None,
    to_blobs: Annotated[
        str, typer.Option(metavar="URL", help="An object store for its models: s3://bucket/prefix.")
    ] = "",
    to_blobs_options: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with what that store is opened with.")
    ] = None,
) -> None:
    """Make a fleet's directory of a back-up. The aggregator of before must not run any more."""
    elsewhere = _elsewhere(to, to_password_file, to_blobs, to_blobs_options)
    with progress() as tell:
        contents = make(file, directory, time.time_ns() // 1_000_000, elsewhere, tell)
    if any(name.upper().startswith(f"{PREFIX}STATE__") for name in os.environ):
        typer.echo(f"{PREFIX}STATE__... in the environment still says where the state is.", err=True)
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


def _elsewhere(
    to: str, password_file: Path | None, blobs: str, blobs_options_file: Path | None
) -> StateSettings:
    """Raises `LocalError` CONFIG_INVALID."""
    if to and not to.startswith("postgresql://"):
        detail = "Expected --to postgresql://USER@HOST/NAME."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="Without it the state is in SQLite in DIR.")
    if (password_file and not to) or (blobs_options_file and not blobs):
        detail = "Expected --to with --to-password-file, and --to-blobs with --to-blobs-options."
        raise LocalError(Code.CONFIG_INVALID, detail)
    files = [str(path.absolute()) if path else "" for path in (password_file, blobs_options_file)]
    try:
        return StateSettings(
            database=to, database_password_file=files[0], blobs=blobs, blobs_options_file=files[1]
        )
    except ValidationError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{error.errors()[0]['msg']}.") from None
