"""`fedless experiment`: run experiments on a local fleet, list and compare runs, make reports. A typer sub-app."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer

INTERRUPTED = 130  # what shells report after a Ctrl-C
OUTPUT = Path("runs")
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
    scale: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Clients, examples and cohorts, times this.")
    ] = 1.0,
    only: Annotated[str, typer.Option(metavar="VARIANT", help="Run this variant of the file alone.")] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the run's folder instead of the file's.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the fleet's state: keys, journals, data.")
    ] = False,
) -> None:
    """Start aggregator, broker and clients on this machine, train, and write report and figures."""
    from fedless.console.link import open_link
    from fedless.experiments.config import load
    from fedless.experiments.progress import Progress
    from fedless.experiments.run import Options, run_experiment

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT may be inherited as ignored
        signal.signal(number, _interrupt)
    try:
        with Progress() as progress:
            options = Options(data, rounds, out, keep, scale, only)
            run_experiment(load(file), open_link, progress, options)
    except KeyboardInterrupt:
        typer.echo("interrupted: every process of the experiment is stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command("list")
def list_runs(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs are.")] = OUTPUT,
) -> None:
    """List the finished runs in a folder, oldest first."""
    from fedless.experiments.compare import listing

    typer.echo(listing(out))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    *,
    target: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, help="An accuracy: when did each run reach it? May be repeated."),
    ] = None,
    page: Annotated[Path, typer.Option("--page", metavar="FILE", help="The page to write.")] = Path(
        "compare.html"
    ),
) -> None:
    """Print a table of several runs, and write a page with figures."""
    from fedless.experiments.compare import text, write

    typer.echo(text(folders, target or ()))
    typer.echo(f"wrote {write(folders, page, target or ())}")


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
