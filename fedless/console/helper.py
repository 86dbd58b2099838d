"""`fedless helper`: the second party of helper mode. Its operator makes and runs it; the fleet's certifies it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fedless.console.link import CONFIGURATION, find_fleet
from fedless.protocol.errors import Code, LocalError

app = typer.Typer(no_args_is_help=True)
CERTIFICATE_DAYS = 5 * 365


@app.callback()
def helper() -> None:
    """Run the second party of helper mode, away from the aggregator and under another operator."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The helper's new directory.")],
    fleet: Annotated[str, typer.Option(help="Name of the fleet that it helps.")],
    authority: Annotated[Path, typer.Option(help="The fleet's authority.pem, from its operator.")],
) -> None:
    """Make a helper's keys and settings in DIR, and a request for its certificate."""
    from fedless.helper.main import found
    from fedless.protocol.identity import check_id

    digest = found(directory, check_id(fleet, "fleet name"), _read(authority))
    typer.echo(f"The helper is in {directory}. Its key's digest, which devices pin:")
    typer.echo(f"  {digest.hex()}")
    typer.echo("Give request.der and hpke.pub to the fleet's operator, who answers with cert.pem by")
    typer.echo("  fedless helper certify --fleet FLEET request.der > cert.pem")
    typer.echo("Put cert.pem beside them. Then:")
    typer.echo(f"  fedless helper serve {directory}")


@app.command()
def certify(
    request: Annotated[Path, typer.Argument(help="request.der of the helper.")],
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory, with its authority.")] = None,
    name: Annotated[str, typer.Option(help="Id of the helper.")] = "main",
) -> None:
    """Sign a helper's certificate; the chain (PEM) goes to standard output."""
    from aggregator.authority import Authority
    from aggregator.config import load
    from fedless.protocol.identity import Name, Role, check_id

    settings = load(find_fleet(fleet) / CONFIGURATION)
    authority = Authority.load(settings.authority.directory, settings.fleet.name)
    names = Name(settings.fleet.name, Role.HELPER, check_id(name, "helper's id"))
    issued = authority.issue(names, _read(request), round(time.time() * 1000), CERTIFICATE_DAYS)
    typer.echo(issued.chain_pem.decode(), nl=False)


@app.command()
def serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The helper's directory, or its helper.toml.")
    ],
) -> None:
    """Run the helper until Ctrl-C or SIGTERM."""
    from fedless.helper.main import serve as run

    run(directory / "helper.toml" if directory.is_dir() else directory)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError(Code.STATE_MISSING, f"{path}: {error.strerror}.") from error
