"""`fedless operator`: who may command the fleet: add, list, revoke one, renew one's own.

Certificates are signed here, with the authority's key in the fleet's folder; the running service is told only of what
it must refuse. So an operator's certificate is enough to revoke others, and never enough to make one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from aggregator.authorities import Authorities
from aggregator.authority import Callers, Issued
from aggregator.config import Settings, load
from aggregator.operators import given
from aggregator.store import operators as store
from aggregator.store.engine import Database
from fedless.console import link
from fedless.console.terminal import FleetOption, moment, print_table
from fedless.protocol.errors import Code, LocalError

OPERATOR = "operator"
app = typer.Typer(no_args_is_help=True)


@app.callback()
def operator() -> None:
    """Say who may command the fleet."""


@app.command("list")
def list_operators(fleet: FleetOption = None) -> None:
    """List the certificates of operators that were given here or have called."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        every, own = operator.operators()
    table = Table(
        "serial", "name", "state", "given or seen first (UTC)", "last seen", "until", "why", box=None
    )
    for each in every:
        state = f"revoked by {each.revoked_by}" if each.revoked_at_ms else "good"
        table.add_row(
            each.serial, f"{each.name}{' (you)' if each.serial == own else ''}", state, moment(each.noted_at_ms),
            moment(each.last_seen_ms), moment(each.not_after_ms)[:10], each.revoked_reason or "-",
        )  # fmt: skip
    print_table(table)


@app.command()
def revoke(
    operator: Annotated[
        str, typer.Argument(metavar="SERIAL|NAME", help="One certificate, or all of a name.")
    ] = "",
    fleet: FleetOption = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The certificate's file, also of one that never called.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")] = "",
) -> None:
    """Take an operator's certificate, at once: its next call is refused."""
    if bool(operator) == (certificate is not None):
        raise LocalError(Code.CONFIG_INVALID, "Name a serial or a name, or the file with --certificate.")
    pem = _read(certificate) if certificate is not None else b""
    with link.open_link(link.find_fleet(fleet)) as connection:
        serials = connection.revoke_operator(operator, pem, reason)
    for serial in serials:
        typer.echo(f"{serial} is revoked.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new operator: a-z, 0-9, '-'.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New folder, for --fleet.")],
    fleet: FleetOption = None,
) -> None:
    """Make a folder with which somebody may command the fleet; whoever has it is that operator."""
    if out.exists():
        raise LocalError(Code.STATE_EXISTS, f"{out} is there already.", fix="Name another --out.")
    folder = link.find_fleet(fleet)
    serial = _give(folder, out, name)
    typer.echo(f"Wrote {out} (certificate {serial}). Hand it over as a secret; then `--fleet {out}`.")


@app.command()
def renew(fleet: FleetOption = None) -> None:
    """Give the operator of this fleet's folder a new key and certificate; the old one is good until it is revoked."""
    folder = link.find_fleet(fleet)
    out = folder / OPERATOR
    authorities = _authorities(load(folder / link.CONFIGURATION))
    old = Callers(authorities.ders, authorities.fleet).read(_read(out / "cert.pem"), _clock())
    serial = _give(folder, out, old.name.id)
    typer.echo(f"{out} has a new key (certificate {serial}); copies of it elsewhere have the old one.")
    typer.echo(f"Take the old one: fedless operator revoke {old.serial}", err=True)


def _give(folder: Path, out: Path, name: str) -> str:
    """A new key and certificate, noted in the store if there is one; the serial."""
    settings = load(folder / link.CONFIGURATION)
    toml = _read(folder / OPERATOR / "operator.toml")
    issued = given(out, _authorities(settings), name, toml, _clock())
    if settings.state.database or (settings.state.directory / "fedless.db").exists():
        try:
            _note(settings, issued, name)
        except LocalError as error:
            typer.echo(f"It is not in the list before its first call: {error}", err=True)
    return issued.serial


def _note(settings: Settings, issued: Issued, name: str) -> None:
    database = Database.open(settings.database_url, sole=False)
    try:
        database.run_now(lambda c: store.note(c, issued.serial, name, issued.not_after_ms, _clock()))
    finally:
        database.close()


def _authorities(settings: Settings) -> Authorities:
    return Authorities.load(settings.authority.directory, settings.fleet.name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError(
            Code.STATE_MISSING, f"{path}: {error.strerror}.", fix="Name another file."
        ) from error


def _clock() -> int:
    return time.time_ns() // 1_000_000
