"""`fedless broker`: the configuration of a mosquitto that the service does not start itself, and its CRL."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.authorities import Authorities
from aggregator.config import Settings, load
from aggregator.enrollment import Registrar, terms_of
from aggregator.founding import renew_server
from aggregator.mosquitto import Listeners, configure
from aggregator.store.engine import Database
from fedless.console.link import CONFIGURATION, find_fleet
from fedless.protocol.identity import Role

app = typer.Typer(no_args_is_help=True)
FleetOption = Annotated[Path | None, typer.Option(help="The fleet's directory.")]


@app.callback()
def broker() -> None:
    """Run a broker of your own."""


@app.command("config")
def config(
    directory: Annotated[Path, typer.Argument(metavar="OUT", help="Where the broker's files are written.")],
    fleet: FleetOption = None,
    place: Annotated[
        str,
        typer.Option(
            "--for", metavar="DIR", help="Where they will be on the broker's machine. Default: OUT."
        ),
    ] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="MQTT.")] = 8883,
    websockets: Annotated[
        int,
        typer.Option(min=0, max=65535, help="MQTT over websockets; 0: none. See docs/operations.md first."),
    ] = 0,
    address: Annotated[str, typer.Option(help="Interface to listen on. Default: all.")] = "",
    persistence: Annotated[Path, typer.Option(help="Where it keeps its queues.")] = Path(
        "/var/lib/mosquitto"
    ),
) -> None:
    """Write mosquitto's configuration, ACL, certificate, key and CRL into OUT. Again: with what is new."""
    settings = load(find_fleet(fleet) / CONFIGURATION)
    authorities = Authorities.load(settings.authority.directory, settings.fleet.name)
    renew_server(settings.broker.directory, authorities.serving, Role.BROKER, _clock())
    home = Path(place) if place else directory.absolute()
    listeners = Listeners(port, websockets, address)
    crl_pem = _revocation_list(settings)
    configure(settings, directory, home, listeners, persistence, crl_pem, authorities.pem)
    typer.echo(f"mosquitto -c {home}/mosquitto.conf")
    typer.echo("cert.key is the broker's private key: make it readable by mosquitto's user alone.", err=True)


@app.command("crl")
def crl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CRL that the broker reads.")],
    fleet: FleetOption = None,
) -> None:
    """Write the list of revoked certificates; send the broker a SIGHUP after it."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_bytes(_revocation_list(load(find_fleet(fleet) / CONFIGURATION)))
    draft.replace(file)


def _revocation_list(settings: Settings) -> bytes:
    authorities = Authorities.load(settings.authority.directory, settings.fleet.name)
    if not settings.state.database and not (settings.state.directory / "fedless.db").exists():
        return authorities.revocation_list((), _clock())  # the service makes it, under its own account
    database = Database.open(settings.database_url, sole=False)
    try:
        registrar = Registrar(database, authorities, terms_of(settings), _clock, os.urandom)
        asyncio.run(registrar.load())
        return registrar.revocation_list()
    finally:
        database.close()


def _clock() -> int:
    return time.time_ns() // 1_000_000
