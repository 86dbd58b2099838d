"""`fedless plan`: what a run would be like, and what cannot work, before it is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from aggregator import planning, tasks
from aggregator.demand import Client, Service
from fedless.authoring.sign import function_files, pack_and_sign, read_manifest
from fedless.console import link
from fedless.console.run import PUBLISHER_KEY
from fedless.console.terminal import FleetOption
from fedless.protocol import bundle_format, manifest
from fedless.protocol.errors import Code, LocalError

app = typer.Typer()
WIDE = 110
PERCENT = "{:.1%}"
Values = Mapping[str, Any]


@app.command("plan")
def plan(
    task: Annotated[Path, typer.Argument(metavar="TASK.toml", help="What to train.")],
    fleet: FleetOption = None,
    clients: Annotated[
        int, typer.Option(min=0, max=100_000, help="For so many assumed clients; asks no aggregator.")
    ] = 0,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another assumption where nothing was measured."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Predict a run: time, bytes, memory, dropouts. Ends with status 1 if it cannot work, and says what can."""
    settings = tasks.load(task)
    folder = None if clients else link.find_fleet(fleet)
    found = _package(task.parent / settings.function, folder)
    changes = dict(map(_pair, assume or []))
    if folder is None:
        taken = planning.assumed(changes)
        fleet_of = [Client(f"assumed-{number}", online=True) for number in range(clients)]
        seen: Values = json.loads(
            planning.plan_to_json(planning.judge(settings, found, fleet_of, Service(), taken))
        )
    else:
        with link.open_link(folder) as operator:
            text = task.read_text("utf-8")
            seen = operator.plan(text, manifest.dump(found.manifest), found.digest, found.size_bytes, changes)
    if as_json:
        typer.echo(json.dumps(seen, indent=2))
    else:
        show(seen)
    if seen["refusals"]:
        raise typer.Exit(1)


def show(seen: Values) -> None:
    """The plan for people."""
    console = Console()
    console = Console(width=console.width if console.is_terminal else WIDE, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _lines(seen):
        table.add_row(name, value)
    console.print(f"Task {seen['task']}: {seen['rounds']} rounds, {seen['strategy']}, mode {seen['mode']}")
    console.print(table)
    for title, key in (("Assumed, not measured", "assumptions"), ("Note", "advice")):
        if seen[key]:
            console.print(f"\n{title}:")
            for line in seen[key]:
                console.print(f"  - {line}")
    if seen["refusals"]:
        console.print("\nCannot work:")
        for each in seen["refusals"]:
            console.print(f"  - {each['reason']}\n    Instead: {each['instead']}. ({each['code']})")


def _lines(seen: Values) -> Iterator[tuple[str, str]]:
    get = seen.__getitem__

    def size(key: str) -> str:
        return _size(seen[key])

    measured = f"{get('measured_clients')} measured with this bundle"
    yield "clients", f"{get('clients')} enrolled, {get('usable')} can take part, {measured}"
    wanted = f"{get('woken')} woken for {get('goal')} reports, at least {get('minimum')}"
    yield "a round", f"{wanted}: {get('margin')} may be missing"
    yield "presence", f"{PERCENT.format(get('presence'))} expected"
    fails = f"the run fails: {_chance(get('run_fails'))}"
    yield (
        "abandoned",
        f"{_chance(get('abandoned'))} of the rounds (too few: {_chance(get('too_few'))}); {fails}",
    )
    p50, p95 = _seconds(get("round_p50_ms")), _seconds(get("round_p95_ms"))
    yield "round time", f"{p50} median, {p95} in 19 of 20 rounds"
    yield "run time", _seconds(get("run_p50_ms"))
    once = f"bundle {size('first_bytes')} once"
    yield "per client", f"{size('down_bytes')} down, {size('up_bytes')} up in a round; {once}"
    if get("setup_bytes"):
        yield "", f"{size('setup_bytes')} in the set-up of a key epoch"
    yield "in all", f"{size('round_bytes')} a round, {size('run_bytes')} the run"
    smallest = get("smallest_device_mb")
    has = f", the smallest device has {smallest} MB" if smallest else ""
    may = f"the instance may use {get('device_limit_mb')} MB"
    yield "device memory", f"{get('device_peak_mb'):.0f} MB at the peak ({may}){has}"
    yield "disk", f"{size('spool_bytes')} for a round's reports, {size('models_bytes')} for the models"
    if get("cost_usd") is not None:
        yield (
            "cost",
            f"{get('cost_usd'):.4f} USD and {get('energy_wh'):.2f} Wh the run (modelled: devices as Raspberry Pi 4)",
        )
    if get("epsilon") is not None:
        yield "privacy", f"epsilon {get('epsilon'):.2f} after the last round"


def _package(path: Path, folder: Path | None) -> planning.Package:
    """What a plan needs of a bundle; of a function directory without the publisher's key, as it would be packed."""
    key = folder / PUBLISHER_KEY if folder else None
    if path.is_dir() and not (key and key.is_file()):
        size = sum(len(data) for data in function_files(path).values())
        return planning.Package(read_manifest(path), b"", size)
    data = pack_and_sign(path, key) if path.is_dir() and key else _read(path)
    files_of = bundle_format.unpack(bundle_format.read_header(data).archive)
    return planning.Package(
        manifest.parse_bytes(files_of[manifest.MANIFEST_FILE]),
        bytes.fromhex(bundle_format.digest(data)),
        len(data),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        detail = f"function: {path} cannot be read: {error.strerror}."
        raise LocalError(
            Code.CONFIG_INVALID, detail, fix="Names in a task file are relative to it."
        ) from error


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        said = f"Expected --assume NAME=NUMBER, found {text[:60]!r}."
        raise LocalError(Code.CONFIG_INVALID, said) from None


def _chance(value: float) -> str:
    if 0 < value < 0.001:  # noqa: PLR2004 - a tenth of a percent
        return "under 0.1%"
    return PERCENT.format(value)


def _seconds(ms: float) -> str:
    if ms < 120_000:  # noqa: PLR2004 - two minutes
        return f"{ms / 1000:.1f} s"
    return f"{ms / 60_000:.0f} min" if ms < 7_200_000 else f"{ms / 3_600_000:.1f} h"  # noqa: PLR2004


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
