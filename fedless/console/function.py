"""`fedless function`: begin, build, test, sign and show functions; what is done on devices is in `devices`.

Only `build` needs tensorflow, and imports it when it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedless.console import devices
from fedless.console.package import package
from fedless.protocol import bundle_format, manifest
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from fedless.authoring.model import Model

app = typer.Typer(name="function", help="Functions: from their source to devices.", no_args_is_help=True)
app.command()(package)
devices.add_to(app)


@app.command()
def build(  # noqa: PLR0913, PLR0917  (each is an option)
    model_file: Annotated[Path, typer.Argument(metavar="MODEL.py", help="Python file that makes the model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Function directory to write.")],
    attribute: Annotated[
        str, typer.Option(help="Name of the model, or of the function that makes it.")
    ] = "model",
    name: Annotated[str, typer.Option(help="Name of the function; the file's name if not given.")] = "",
    version: Annotated[
        int, typer.Option(min=1, help="Version; devices refuse older ones than they saw.")
    ] = 1,
    licence: Annotated[str, typer.Option(help="Licence of the function, as an SPDX name.")] = "",
    memory_mb: Annotated[int, typer.Option(min=0, help="Memory bound on devices, MB (0: measured).")] = 0,
    data: Annotated[str, typer.Option(help="File or folder of examples: the check trains a few steps.")] = "",
    also_on: Annotated[
        list[str] | None, typer.Option(help="Python with another TFLite runtime to check.")
    ] = None,
) -> None:
    """Turn the model in MODEL.py into a function directory, through the author's gate."""
    model, provider = load_model(model_file, attribute), model_file.parent / manifest.PROVIDER_FILE
    from fedless.authoring.build import build_function

    built = build_function(
        model,
        out,
        name=name or model_file.stem.replace("_", "-").lower(),
        version=version,
        licence=licence,
        memory_mb=memory_mb,
        files=[provider] if provider.is_file() else [],
        pythons=[sys.executable, *(also_on or [])],
        data={"path": data} if data else None,
    )
    typer.echo(describe(built))
    typer.echo(f"wrote {out}")


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    name: Annotated[str, typer.Option(help="Name of the function; the folder's name if not given.")] = "",
) -> None:
    """Begin a function of your own: def handle(event, context)."""
    from fedless.authoring.own import begin

    begun = begin(folder, name or folder.absolute().name)
    typer.echo(f"wrote {folder}: {begun.name} version {begun.version}; next: fedless function test {folder}")


@app.command("test")
def call_once(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Function directory.")],
    event: Annotated[str, typer.Option(help="The event, JSON.")] = "null",
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A data mount.")] = None,
) -> None:
    """Call a function of your own once, in the sandbox that a device would give it."""
    from fedless.authoring.own import try_out

    mounts = {name: Path(path) for name, _, path in (item.partition("=") for item in data or [])}
    try:
        given = json.loads(event)
    except ValueError as error:
        raise LocalError(Code.MALFORMED, f"The event is not JSON: {error}.") from error
    tried = try_out(folder, given, mounts)
    typer.echo(json.dumps(tried.answer))
    figures = f"{tried.run_ms:.0f} ms, {tried.peak_rss_mb:.0f} MB, in {', '.join(tried.sandbox)}"
    typer.echo(figures, err=True)


@app.command()
def sign(
    function_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Function directory.")],
    key: Annotated[Path, typer.Option(help="The publisher's Ed25519 private key (PEM, or 32 raw bytes).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.bundle", help="Bundle to write.")],
) -> None:
    """Pack and sign a function directory."""
    from fedless.authoring.sign import pack_and_sign

    bundle = pack_and_sign(function_dir, key)
    out.write_bytes(bundle)
    typer.echo(f"wrote {out}: {len(bundle)} bytes, digest {bundle_format.digest(bundle)}")


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Bundle, function.toml or function directory.")
    ],
) -> None:
    """Say what a function is. The signature of a bundle is not checked: that takes the fleet's keys."""
    if path.is_dir():
        path /= manifest.MANIFEST_FILE
    if not path.is_file():
        raise LocalError(Code.STATE_MISSING, f"There is no {path}.")
    data = path.read_bytes()
    if path.name == manifest.MANIFEST_FILE:
        typer.echo(describe(manifest.parse_bytes(data)))
        return
    header = bundle_format.read_header(data)
    files = bundle_format.unpack(header.archive)
    typer.echo(describe(manifest.parse_bytes(files[manifest.MANIFEST_FILE])))
    typer.echo(f"digest      {bundle_format.digest(data)}")
    typer.echo(f"publisher   {header.key_id.hex()} (not checked)")
    typer.echo(
        f"files       {', '.join(f'{name} ({len(content)} bytes)' for name, content in files.items())}"
    )


def describe(described: manifest.Manifest) -> str:
    """A manifest as lines for people."""
    lines = [
        f"function    {described.name} version {described.version}, entry {described.entry}",
        f"limits      {described.memory_mb} MB, {described.timeout_ms} ms, network {described.network}",
    ]
    model = described.model
    if model is not None:
        lines.append(f"model       {model.parameters} parameters, batch {model.batch}, loss {model.loss}")
        lines.extend(f"input       {item.name} {list(item.shape)} {item.dtype}" for item in model.inputs)
        lines.extend(
            f"label       {item.name} {list(item.shape)} {item.dtype}"
            + (f", {item.classes} classes" if item.classes else "")
            for item in model.labels
        )
        lines.extend(f"tensor      {item.name} {list(item.shape)}" for item in model.tensors)
    check = described.check
    if check is not None:
        lines.append(
            f"check       {check.runtime} against tensorflow {check.tensorflow}: "
            f"error {check.gradient_error}, peak {check.peak_memory_mb} MB"
        )
    return "\n".join(lines)


def load_model(path: Path, attribute: str = "model") -> Model:
    """The model that the author's file makes: a `Model`, a Keras model, or a function that returns one.

    Raises `LocalError`: NOT_INSTALLED without tensorflow, CONFIG_INVALID for a file without such an
    attribute, MODEL_NOT_PORTABLE.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise LocalError(
            Code.NOT_INSTALLED, "Building a function needs tensorflow.", fix="Install fedless[authoring]."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notices about CPU features are not the author's
    from fedless.authoring.model import Model
    from fedless.authoring.translate import translate

    found = getattr(_module(path), attribute, None)
    found = found() if callable(found) and not hasattr(found, "layers") else found
    if isinstance(found, Model):
        return found
    if hasattr(found, "layers") and hasattr(found, "get_weights"):
        return translate(found)
    raise LocalError(
        Code.CONFIG_INVALID,
        f"{path} has no {attribute} that is a model or makes one.",
        fix="Define a function model() that returns a fedless.authoring.model.Model or a Keras model.",
    )


def _module(path: Path) -> Any:  # noqa: ANN401  (the author's module)
    spec = importlib.util.spec_from_file_location("fedless_author_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LocalError(Code.STATE_MISSING, f"There is no Python file {path}.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
