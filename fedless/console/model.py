"""`fedless model export`: a run's newest model as a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from fedless.console import link
from fedless.console.terminal import FleetOption
from fedless.protocol.errors import Code, LocalError, PeerError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def model() -> None:
    """Take trained models out."""


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")],
    fleet: FleetOption = None,
) -> None:
    """Write a run's newest weights: raw float32, little-endian, in the order of the function's tensors."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        info = operator.run(run)
        data = b"".join(operator.fetch(info.model_digest))
    if hashlib.sha256(data).digest() != info.model_digest:
        raise PeerError(Code.WRONG_DIGEST, "The model was damaged on the way.", fix="Try again.")
    try:
        out.write_bytes(data)
    except OSError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{out} cannot be written: {error.strerror}.") from error
    typer.echo(f"wrote {out}: version {info.model_version}, {len(data) // 4} parameters")
