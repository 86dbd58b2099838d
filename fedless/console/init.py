"""`fedless init DIR`: makes a fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.founding import Ports, fleet_name, found_fleet, own_address

app = typer.Typer()


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's new directory.")],
    fleet: Annotated[
        str, typer.Option(help="Name of the fleet: a-z, 0-9, '-'. Default: the directory's.")
    ] = "",
    host: Annotated[
        str, typer.Option(help="Name or address by which devices reach this machine. Default: its own.")
    ] = "",
    fleet_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC; 0: any free port.")] = 7443,
    enrollment_port: Annotated[int, typer.Option(min=0, max=65535, help="Enrollment; 0: any.")] = 7444,
    mqtt_port: Annotated[int, typer.Option(min=0, max=65535, help="MQTT broker; 0: any free port.")] = 8883,
) -> None:
    """Make a new fleet in DIR: authority, certificates, keys and configuration."""
    name, address = fleet or fleet_name(directory.absolute().name), host or own_address()
    ports = Ports(fleet_port, enrollment_port, mqtt_port)
    authority = found_fleet(directory, name, address, ports, round(time.time() * 1000))
    typer.echo(f"Fleet {name!r} is in {directory}. Devices reach it at {address}.")
    typer.echo(f"Its authority is {authority.digest} (every claim carries this).")
    typer.echo("Keep authority/authority.key and publisher/publisher.key safe; back up the directory.")
    typer.echo("")
    typer.echo(f"  fedless aggregator serve --fleet {directory}")
    typer.echo(f"  fedless fleet claim --fleet {directory}")
