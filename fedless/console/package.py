"""`fedless function package`: a function's package for one platform, its size, and how to deploy it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud_adapters.packaging import MB, Package, Wanted
from cloud_adapters.packaging import package as make
from fedless.protocol.errors import Code, LocalError

Target = Annotated[str, typer.Option(help="aws-lambda, azure, google, knative, openfaas or openwhisk.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to make. Default: package-TARGET.")
]
Python = Annotated[str, typer.Option(help="Python version of the platform.")]
Arch = Annotated[str, typer.Option(help="x86_64 or aarch64.")]


def package(
    target: Target,
    deployment: Annotated[
        Path, typer.Option(metavar="FILE", help="What `fedless fleet add-function` wrote.")
    ] = Path("fedless-deployment.json"),
    out: Out = None,
    python: Python = Wanted.python,
    arch: Arch = Wanted.architecture,
) -> None:
    """Package the function's runtime for a cloud platform, and print the command that deploys it."""
    try:
        text = deployment.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(
            Code.STATE_MISSING,
            f"{deployment} cannot be read ({type(error).__name__}).",
            fix="`fedless fleet add-function NAME --platform ... --config FILE` writes it.",
        ) from error
    made = make(target, Wanted(text, out or Path(f"package-{target}"), python, arch))
    tell(made)


def tell(made: Package, before: tuple[str, ...] = ()) -> None:
    """Say what was made, its size, and how it is deployed: by the commands `before` and its own."""
    zipped = f", {made.zip_bytes / MB:.0f} MB zipped" if made.zip_bytes else ""
    typer.echo(f"wrote {made.path}: {made.size_bytes / MB:.0f} MB{zipped}")
    for note in made.notes:
        typer.echo(note)
    typer.echo("Deploy it with:")
    for command in (*before, *made.commands):
        typer.echo(f"  {command}")
