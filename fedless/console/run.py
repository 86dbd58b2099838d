"""`fedless run`: start, list, show, watch, pause, resume and stop runs. `fedless model export` is in `model.py`."""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.table import Table

from aggregator import tasks
from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console import link, terminal
from fedless.console.sinks import MLflow, Sink, TensorBoard
from fedless.console.terminal import FleetOption, moment, print_table
from fedless.console.traces import Traces
from fedless.console.why import why
from fedless.experiments.progress import Progress
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode

app = typer.Typer(no_args_is_help=True)
PUBLISHER_KEY = Path("publisher") / "publisher.key"
GOING_ON, COMMITTED = ("running", "paused"), "committed"
LATE_S, LOOK_AGAIN_S = 5.0, 0.5
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]


@app.command()
def start(
    task: Annotated[Path, typer.Argument(metavar="TASK.toml", help="What to train.")],
    fleet: FleetOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it ends.")] = False,  # noqa: FBT002 - a flag
    plain: Annotated[bool, typer.Option("--plain", help="Without masks, whatever the task says.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Start a run; prints its id. A fleet too small for masked rounds is told so, and asked on a terminal."""
    folder, settings = link.find_fleet(fleet), tasks.load(task)
    base = task.parent
    bundle = _bundle(base / settings.function, folder)
    initial = _initial(base, settings)
    test_set = _read(base / settings.test_set, "test_set") if settings.test_set else b""
    with link.open_link(folder) as operator:
        digests = [operator.put(data) if data else b"" for data in (bundle, initial, test_set)]
        text = task.read_text("utf-8")
        run_id = _begin(operator, _without_masks(text) if plain else text, digests)
        typer.echo(run_id)
        if watch:
            _follow(operator, run_id)


@app.command("list")
def list_runs(fleet: FleetOption = None) -> None:
    """List the runs."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        runs = operator.runs()
    table = Table("run", "task", "state", "model", "started (UTC)", "ended (UTC)", "reason", box=None)
    for run in runs:
        model = f"{run.model_version}/{run.rounds_wanted}"
        table.add_row(
            run.run_id, run.task_name, run.state, model, moment(run.started_at_ms), moment(run.ended_at_ms), run.reason,
        )  # fmt: skip
    if runs:
        print_table(table)
    typer.echo(f"{len(runs)} runs", err=True)


@app.command()
def show(
    run: RunId,
    number: Annotated[
        int, typer.Argument(metavar="[ROUND]", min=0, help="Of this round every figure.", show_default=False)
    ] = 0,
    fleet: FleetOption = None,
) -> None:
    """Show a run with its rounds; of one round, every figure."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.run(run)
    if number:
        _show_round(info, number)
        return
    for line in _described(info):
        typer.echo(line)
    table = Table("round", "state", "reports", "examples", "seconds", "metrics", "lost", "reason", box=None)
    for each in info.rounds:
        table.add_row(
            str(each.number), each.state, f"{each.reported}/{each.selected}", *_details(each), each.reason
        )
    if info.rounds:
        print_table(table)


def _show_round(info: link.RunInfo, number: int) -> None:
    chosen = [each for each in info.rounds if each.number == number]
    if not chosen:
        raise PeerError(Code.UNKNOWN_ROUND, f"Run {info.run_id} has no round {number}.")
    each = chosen[-1]
    examples, took, _, lost = _details(each)
    for name, value in (
        ("round", f"{each.number} of {info.run_id}, {each.mode}"),
        ("state", f"{each.state}{': ' + each.reason if each.reason else ''}"),
        ("reports", f"{each.reported} of {each.selected} clients, {examples} examples"),
        ("lost", lost or "-"),
        ("opened", f"{moment(each.opened_at_ms)} UTC, {took} s"),
        ("bytes", f"{each.bytes_down} down, {each.bytes_up} up"),
    ):
        typer.echo(f"{name:<9}{value}")
    table = Table("figure", "value", box=None)
    for name, value in terminal.all_figures(each.metrics):
        table.add_row(name, value)
    for name, ms in sorted(each.phases_ms.items()):
        table.add_row(f"{name} (ms)", f"{ms:.0f}")
    print_table(table)


@app.command()
def watch(
    run: RunId,
    fleet: FleetOption = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write event files for TensorBoard there.")
    ] = None,
    mlflow: Annotated[
        str, typer.Option(metavar="URI", help="Write a run to this tracking store of MLflow.")
    ] = "",
    otlp: Annotated[
        str, typer.Option(metavar="URL", help="Send a trace of each round to this collector, OTLP over HTTP.")
    ] = "",
) -> None:
    """Show a run's progress until it ends; of one that has ended, write its figures where the options say."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.run(run)
        sinks: list[Sink] = [TensorBoard(tensorboard, run)] if tensorboard else []
        sinks += [MLflow(mlflow, info)] if mlflow else []
        sinks += [Traces(otlp, info)] if otlp else []
        _follow(operator, run, sinks)


@app.command()
def stop(run: RunId, fleet: FleetOption = None) -> None:
    """End a run; its newest model stays."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.stop_run(run)
    typer.echo(f"{info.run_id} is {info.state}; its newest model is version {info.model_version}.")


app.command()(why)


@app.command()
def pause(run: RunId, fleet: FleetOption = None) -> None:
    """Open no more rounds of a run until `resume`, over restarts too; its open round goes on to its end."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.pause_run(run)
    still = [each.number for each in info.rounds if not each.ended_at_ms]
    later = f"; round {still[0]} goes on to its end" if still else ""
    typer.echo(f"{info.run_id} is {info.state}{later}.")


@app.command()
def resume(run: RunId, fleet: FleetOption = None) -> None:
    """Let a paused run go on. After a restart of the aggregator every run goes on by itself, unless it is paused."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.resume_run(run)
    typer.echo(f"{info.run_id} is {info.state} from model version {info.model_version} on.")


def _begin(operator: link.Link, text: str, digests: list[bytes]) -> str:
    """Starts a run; a fleet that is too small for masks is asked whether it wants plain rounds."""
    try:
        return operator.start_run(text, *digests).run_id
    except PeerError as error:
        if error.code is not Code.TOO_FEW or not sys.stdin.isatty():
            raise
        typer.echo(error.detail, err=True)
        question = (
            "Start plain rounds? The aggregator then sees single updates, and each device must allow it."
        )
        if not typer.confirm(question, default=False, err=True):
            raise
    return operator.start_run(_without_masks(text), *digests).run_id


def _without_masks(text: str) -> str:
    return tomli_w.dumps(tomllib.loads(text) | {"mode": Mode.PLAIN.value})


def _bundle(path: Path, folder: Path) -> bytes:
    """A bundle's bytes; a function directory is signed with the fleet's publisher key if that is here."""
    if not path.is_dir():
        return _read(path, "function")
    key = folder / PUBLISHER_KEY
    if not key.is_file():
        detail = f"{path} is an unsigned function, and {key} is not here."
        fix = "Sign it where the key is (`fedless function sign`) and name the bundle in the task."
        raise LocalError(Code.STATE_MISSING, detail, fix=fix)
    return pack_and_sign(path, key)


def _initial(base: Path, settings: tasks.TaskSettings) -> bytes:
    function = base / settings.function
    if settings.initial:
        return _read(base / settings.initial, "initial")
    if function.is_dir():
        return initial_weights(function)
    detail = "Expected the file of the initial weights beside a bundle; found no key `initial`."
    raise LocalError(
        Code.CONFIG_INVALID, detail, fix="Name it in the task: a function directory has it as initial.f32."
    )


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        detail = f"{key}: {path} cannot be read: {error.strerror}."
        raise LocalError(
            Code.CONFIG_INVALID, detail, fix="Names in a task file are relative to it."
        ) from error


def _follow(operator: link.Link, run_id: str, sinks: Sequence[Sink] = ()) -> None:
    """Prints a line for each round that ends; ends with the run, and says how that ended."""
    told: set[int] = set()
    after = 0
    with Progress() as progress:
        info = operator.run(run_id)
        going_on = info.state in GOING_ON
        if not sinks:  # they hear a round's events before its end
            _tell(progress, info, told)
        if going_on or sinks:
            for event in operator.watch(run_id):
                after = event.sequence
                for sink in sinks:
                    sink.heard(event)
                if going_on and not event.client_id:  # the run's or a round's own event, not one of a client
                    _tell(progress, operator.run(run_id), told, sinks)
        info = operator.run(run_id)
        _tell(progress, info, told, sinks)
    _stragglers(operator, run_id, after, sinks)
    for sink in sinks:
        sink.close(info)
    for line in _described(info):
        typer.echo(line)
    if info.state != "finished":
        raise typer.Exit(1)


def _stragglers(operator: link.Link, run_id: str, after: int, sinks: Sequence[Sink]) -> None:
    """What devices tell of the last rounds when the run has ended already; waits `LATE_S` at most."""
    until = time.monotonic() + LATE_S
    while any(sink.waits for sink in sinks) and time.monotonic() < until:
        time.sleep(LOOK_AGAIN_S)
        for event in operator.watch(run_id, after):
            after = event.sequence
            for sink in sinks:
                sink.heard(event)


def _tell(progress: Progress, info: link.RunInfo, told: set[int], sinks: Sequence[Sink] = ()) -> None:
    progress.rounds(info.model_version, info.rounds_wanted)
    progress.now(info.reason or info.task_name)
    # The newest round's model may still be evaluated: it is told when the next one opens, or at the end.
    settled = info.rounds[:-1] if info.state in GOING_ON else info.rounds
    for each in settled:
        if each.ended_at_ms and each.round_id not in told:
            told.add(each.round_id)
            for sink in sinks:
                sink.ended(info, each)
            examples, seconds, metrics, lost = _details(each)
            made = sum(one.state == COMMITTED and one.number <= each.number for one in info.rounds)
            model = f", model {made} of {info.rounds_wanted}" if each.state == COMMITTED else ""
            parts = [
                f"round {each.number} {each.state}{model}",
                f"{each.reported}/{each.selected} reports, {examples} examples, {seconds} s",
                metrics,
                f"lost: {lost}" if lost else "",
                each.reason,
            ]
            progress.say("  ".join(part for part in parts if part))


def _details(each: link.RoundInfo) -> tuple[str, str, str, str]:
    """Examples, seconds, metrics, lost clients."""
    seconds = f"{(each.ended_at_ms - each.opened_at_ms) / 1000:.1f}" if each.ended_at_ms else "-"
    examples = each.examples or round(each.metrics.get("train_examples", 0))  # masks hide each one's, not all
    metrics = terminal.headline(each.metrics)
    lost = ", ".join(f"{code} {count}" for code, count in sorted(each.losses.items()))
    return str(examples), seconds, metrics, lost


def _described(info: link.RunInfo) -> Iterator[str]:
    yield f"run      {info.run_id} ({info.task_name})"
    yield f"state    {info.state}{': ' + info.reason if info.reason else ''}"
    yield f"model    version {info.model_version} of {info.rounds_wanted}, {info.model_digest.hex()}"
    yield f"started  {moment(info.started_at_ms)} UTC"
    if info.ended_at_ms:
        yield f"ended    {moment(info.ended_at_ms)} UTC"
