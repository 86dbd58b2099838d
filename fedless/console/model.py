"""`fedless model`: a run's models, which of them is the best, which a channel serves, and files of them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from rich.table import Table

from fedless.console import link
from fedless.console.terminal import FleetOption, all_figures, headline, moment, print_table
from fedless.protocol import bundle_format, manifest
from fedless.protocol.errors import Code, LocalError, PeerError

app = typer.Typer(no_args_is_help=True)
PRODUCTION = "production"
FORMATS = {".f32": "raw", ".npz": "npz", ".tflite": "tflite", ".keras": "keras"}
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
Version = Annotated[int | None, typer.Option("--version", min=0, help="This version.")]
Best = Annotated[bool, typer.Option("--best", help="The best by the task's metric (evaluation.best).")]
InitialHead = typer.Option("--initial-head", help="With the untrained part of a personalised run's model.")
Channel = Annotated[str, typer.Option("--channel", "-c", help="A channel's name.")]


@app.callback()
def model() -> None:
    """List, promote and export trained models."""


@app.command("list")
def list_models(run: RunId, fleet: FleetOption = None) -> None:
    """List a run's model versions with their metrics."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        found = operator.models(run)
    table = Table("version", "round", "made (UTC)", "metrics", "channels", "digest", box=None)
    for each in found:
        name = f"{each.version} best" if each.best else str(each.version)
        table.add_row(
            name, str(each.round or "-"), moment(each.created_at_ms), headline(each.metrics), ", ".join(each.channels),
            each.digest.hex()[:12],
        )  # fmt: skip
    print_table(table)


@app.command()
def show(
    run: RunId,
    version: Version = None,
    best: Best = False,  # noqa: FBT002 - a flag
    fleet: FleetOption = None,
) -> None:
    """Show one version: the newest, or the one that is named."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        chosen = choose(operator.models(run), version, best=best)
        personal = _personal(operator, chosen)
    for name, value in (
        ("run", chosen.run_id), ("version", f"{chosen.version}{' (best)' if chosen.best else ''}"),
        ("round", str(chosen.round or "-")), ("made", f"{moment(chosen.created_at_ms)} UTC"),
        ("channels", ", ".join(chosen.channels) or "-"),
        ("model", chosen.digest.hex()), ("bundle", chosen.bundle_digest.hex()),
        *([("personal", f"{personal}; each device has its own, here is the initial one")] if personal else []),
    ):  # fmt: skip
        typer.echo(f"{name:<9}{value}")
    for name, value in all_figures(chosen.metrics):
        typer.echo(f"  {name:<32}{value}")


@app.command()
def channels(
    channel: Annotated[str, typer.Argument(metavar="[CHANNEL]", help="All that this one served.")] = "",
    fleet: FleetOption = None,
) -> None:
    """List the channels and the model that each serves; of one channel, its whole history."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        found = operator.promotions(channel)
    table = Table("channel", "run", "version", "since (UTC)", "by", box=None)
    for step in found:
        table.add_row(
            step.channel, step.run_id, str(step.version), moment(step.at_ms), step.what.replace("_", " ")
        )
    if found:
        print_table(table)
    typer.echo(f"{len(found)} {'steps' if channel else 'channels'}", err=True)


@app.command()
def promote(
    run: RunId,
    version: Version = None,
    channel: Channel = PRODUCTION,
    fleet: FleetOption = None,
) -> None:
    """Let a channel serve a version of this run; without --version the best one."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        step = operator.promote(channel, run, version)
    typer.echo(f"{step.channel} serves version {step.version} of {step.run_id}.")


@app.command()
def rollback(channel: Channel = PRODUCTION, fleet: FleetOption = None) -> None:
    """Let a channel serve again what it served before."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        step = operator.roll_back(channel)
    typer.echo(f"{step.channel} serves version {step.version} of {step.run_id} again.")


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Id of the run; not needed with --channel.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write; its suffix is the format."),
    ] = None,
    version: Version = None,
    best: Best = False,  # noqa: FBT002 - a flag
    channel: Annotated[str, typer.Option("--channel", "-c", help="What this channel serves.")] = "",
    like: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.keras", help="For .keras: the model that the function was built of."),
    ] = None,
    initial_head: Annotated[bool, InitialHead] = False,  # noqa: FBT002 - a flag
    fleet: FleetOption = None,
) -> None:
    """Write a model as a file: the newest, or --version, --best or --channel.

    The fleet has no device's personal part: of a run with [personalise] it takes --initial-head.

    .tflite: `infer` with the weights inside; .keras: with --like; .npz: an array for each tensor; anything else: raw
    float32, little-endian, in the order of the function's tensors. The first two need fedless[authoring].
    """
    if out is None or bool(run) == bool(channel):
        raise LocalError(Code.CONFIG_INVALID, "Expected a RUN or --channel NAME, and --out FILE.")
    kind = FORMATS.get(out.suffix, "raw")
    _check_installed(kind)
    with link.open_link(link.find_fleet(fleet)) as operator:
        if channel:
            run, version = _served(operator, channel)
        chosen = choose(operator.models(run), version, best=best)
        personal = _personal(operator, chosen)
        if personal and not initial_head:
            _refuse_personal(run, personal)
        weights = np.frombuffer(_fetch(operator, chosen.digest), "<f4")
        bundle = _fetch(operator, chosen.bundle_digest) if kind != "raw" else b""
    with _writing(out) as draft:
        _write(kind, weights, bundle, like, draft)
    typer.echo(f"wrote {out}: version {chosen.version}, {len(weights)} parameters")
    if personal:
        typer.echo(f"{personal} have the initial values: every device trains its own.", err=True)


def choose(found: list[link.ModelInfo], version: int | None, *, best: bool) -> link.ModelInfo:
    """The version that is named, the best, else the newest. Raises `PeerError(UNKNOWN_BLOB)`."""
    if version is None and not best:
        return found[-1]
    chosen = [each for each in found if (each.best if best else each.version == version)]
    if not chosen:
        what = "no version that was judged" if best else f"no version {version}"
        raise PeerError(
            Code.UNKNOWN_BLOB, f"Run {found[-1].run_id} has {what}.", fix="See `fedless model list RUN`."
        )
    return chosen[0]


def _personal(operator: link.Link, chosen: link.ModelInfo) -> str:
    """The tensors that are each device's own, in words; empty where all of the model is shared."""
    numbers = list(chosen.personal)
    own = list(zip(numbers[::2], numbers[1::2], strict=True))
    if not own:
        return ""
    model = _described(_fetch(operator, chosen.bundle_digest))[0]
    names = [t.name for t in model.tensors if any(low <= t.offset < low + size for low, size in own)]
    return f"{', '.join(names)} ({sum(size for _, size in own)} of {model.parameters} parameters)"


def _refuse_personal(run: str, personal: str) -> NoReturn:
    raise LocalError(
        Code.CONFIG_INVALID,
        f"The fleet has no trained {personal} of {run}: every device keeps its own.",
        fix="To have the model with that part as a device begins: --initial-head. Devices use theirs by themselves.",
    )


def _served(operator: link.Link, channel: str) -> tuple[str, int]:
    now = [step for step in operator.promotions() if step.channel == channel]
    if not now:
        raise PeerError(
            Code.UNKNOWN_BLOB, f"Channel {channel!r} serves nothing.", fix="`fedless model promote RUN`."
        )
    return now[0].run_id, now[0].version


def _check_installed(kind: str) -> None:
    if kind in {"tflite", "keras"} and importlib.util.find_spec("tensorflow") is None:
        detail = f"To write .{kind} takes TensorFlow, which is not here."
        fix = "Install fedless[authoring], or export .npz and convert it elsewhere."
        raise LocalError(Code.NOT_INSTALLED, detail, fix=fix)


def _write(kind: str, weights: np.ndarray, bundle: bytes, like: Path | None, draft: Path) -> None:
    if kind == "raw":
        draft.write_bytes(weights.tobytes())
        return
    from fedless.authoring import export as files

    described, packed = _described(bundle)
    if kind == "npz":
        files.npz(described, weights, draft)
    elif kind == "tflite":
        files.arrays(described, weights)
        draft.write_bytes(files.tflite(packed[manifest.GRAPH_FILE], weights))
    elif like is None:
        detail = "A function holds a TFLite graph and names of tensors, not the Keras model it was built of."
        raise LocalError(
            Code.CONFIG_INVALID, detail, fix="Name that with --like MODEL.keras, or export .tflite or .npz."
        )
    else:
        files.keras(like, described, weights, draft)


def _described(bundle: bytes) -> tuple[manifest.Model, Mapping[str, bytes]]:
    """The model of a bundle, as its manifest has it, and its files."""
    packed = bundle_format.unpack(bundle_format.read_header(bundle).archive)
    described = manifest.parse_bytes(packed[manifest.MANIFEST_FILE]).model
    if described is None:
        raise PeerError(Code.MANIFEST_INVALID, "The run's function has no model.")
    return described, packed


def _fetch(operator: link.Link, digest: bytes) -> bytes:
    data = b"".join(operator.fetch(digest))
    if hashlib.sha256(data).digest() != digest:
        raise PeerError(Code.WRONG_DIGEST, "The model was damaged on the way.", fix="Try again.")
    return data


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its place when all is written."""
    draft = out.with_name(f".{out.name}.new")
    try:
        yield draft
        draft.replace(out)
    except OSError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{out} cannot be written: {error.strerror}.") from error
    finally:
        draft.unlink(missing_ok=True)
