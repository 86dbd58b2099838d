"""`fedless experiment`: run an experiment on a local fleet, make its report again. A typer sub-app."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer

INTERRUPTED = 130  # what shells report after a Ctrl-C
app = typer.Typer(name="experiment", help="Run experiments on a local fleet.", no_args_is_help=True)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, a TOML file.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of idx files to use instead of the file's data."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Number of rounds instead of the task's.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the run's folder instead of the file's.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the fleet's state: keys, journals, data.")
    ] = False,
) -> None:
    """Start aggregator, broker and devices on this machine, train, and write report and figures."""
    from fedless.console.link import open_link
    from fedless.experiments.config import load
    from fedless.experiments.progress import Progress
    from fedless.experiments.run import Options, run_experiment

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT may be inherited as ignored
        signal.signal(number, _interrupt)
    try:
        with Progress() as progress:
            run_experiment(load(file), open_link, progress, Options(data, rounds, out, keep))
    except KeyboardInterrupt:
        typer.echo("interrupted: every process of the experiment is stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
) -> None:
    """Write the run's report.html again from its summary.json and rounds.jsonl."""
    from fedless.experiments.report import write

    typer.echo(f"wrote {write(folder)}")


def _interrupt(number: int, frame: object) -> NoReturn:
    """SIGTERM and SIGHUP end an experiment as Ctrl-C does: every process that it started is stopped."""
    del number, frame
    raise KeyboardInterrupt
