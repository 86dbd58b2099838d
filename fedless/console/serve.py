"""`fedless aggregator`: runs the service, installs it as one of systemd, or brings its database up to date."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedless.console.link import CONFIGURATION, find_fleet
from fedless.console.terminal import FleetOption

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
app = typer.Typer(no_args_is_help=True)


@app.callback()
def aggregator() -> None:
    """Run the service, or install it."""


@app.command()
def serve(
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration, if it is not DIR/aggregator.toml.")
    ] = None,
    *,
    standby: Annotated[
        bool, typer.Option("--standby", help="While another one works on this state, wait and take over.")
    ] = False,
) -> None:
    """Run the aggregator, with its broker, until Ctrl-C or SIGTERM."""
    _with_one_heap()
    from aggregator.main import serve as run

    run(config or find_fleet(fleet) / CONFIGURATION, debug="--debug" in sys.argv[1:2], standby=standby)


@app.command()
def reload(fleet: FleetOption = None) -> None:
    """Let the running aggregator take keys, authorities and certificates up from their files."""
    from fedless.console.link import open_link

    with open_link(find_fleet(fleet)) as operator:
        changed = operator.reload()
    typer.echo(f"taken up: {', '.join(changed)}" if changed else "Nothing has changed since it read them.")


@app.command()
def migrate(
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory.")] = None,
    to: Annotated[
        int | None,
        typer.Option(help="The schema version, if not the newest; going back drops what later ones hold."),
    ] = None,
) -> None:
    """Bring the database to a schema version, while the aggregator is stopped; its start does it as well."""
    from aggregator import lock
    from aggregator.config import load
    from aggregator.store.engine import migrate_to

    settings = load(find_fleet(fleet) / CONFIGURATION)
    with lock.hold(settings.state.directory):
        before, after = migrate_to(settings.database_url, to)
    if before == after:
        typer.echo(f"The database is of schema version {after} already.")
    else:
        typer.echo(f"The database is of schema version {after} now; it was {before or 'empty'}.")


@app.command()
def install(
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory.")] = None,
    user: Annotated[
        str, typer.Option(help="Whose service it is; made if there is no such user.")
    ] = "fedless",
    unit: Annotated[Path, typer.Option(help="The unit's file.")] = Path(
        "/etc/systemd/system/fedless-aggregator.service"
    ),
) -> None:
    """Install the aggregator as a hardened service of systemd, and start it. Run it as root."""
    from aggregator.config import load
    from aggregator.unit import install as install_unit

    folder = find_fleet(fleet).resolve()
    for line in install_unit(load(folder / CONFIGURATION), unit, folder, user):
        typer.echo(line)


def _with_one_heap() -> None:
    """Become the same process again with one heap for all threads, unless the environment says how many.

    glibc gives each thread a heap of its own and keeps what they free: 50 MB in a round of 100 large reports
    (benchmarks/bench_aggregator_memory.py). It reads the variable when a process starts, and never again.
    """
    if not ONE_HEAP.keys() & os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | ONE_HEAP)  # noqa: S606 - no shell is wanted
