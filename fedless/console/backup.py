"""`fedless backup FILE`: one file of everything that a fleet needs to go on elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.backup import back_up
from fedless.console.link import CONFIGURATION, find_fleet
from fedless.console.terminal import progress

app = typer.Typer()


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new back-up, a tar file.")],
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory.")] = None,
    with_keys: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--with-keys", help="With every private key, the authority's too.")
    ] = False,
) -> None:
    """Back a fleet up into FILE, while it runs or not: database, models, bundles, certificates, configuration."""
    folder = find_fleet(fleet)
    with progress() as tell:
        contents = back_up(
            folder / CONFIGURATION, file, time.time_ns() // 1_000_000, with_keys=with_keys, tell=tell
        )
    megabytes = file.stat().st_size / 1e6
    typer.echo(f"{file} has {len(contents.files)} files of fleet {contents.fleet!r}, {megabytes:.1f} MB.")
    if with_keys:
        typer.echo("Whoever has it can be the fleet: its authority and its publisher. Encrypt it.", err=True)
    else:
        typer.echo(
            "It has no private key; the fleet cannot be served from it alone. See --with-keys.", err=True
        )
