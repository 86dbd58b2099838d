"""`fedless aggregator serve`: runs the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedless.console.link import CONFIGURATION, find_fleet

app = typer.Typer(no_args_is_help=True)


@app.callback()
def aggregator() -> None:
    """Run the service."""


@app.command()
def serve(
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration, if it is not DIR/aggregator.toml.")
    ] = None,
) -> None:
    """Run the aggregator, with its broker, until Ctrl-C or SIGTERM."""
    from aggregator.main import serve as run

    run(config or find_fleet(fleet) / CONFIGURATION, debug="--debug" in sys.argv[1:2])
