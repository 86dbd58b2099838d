"""`fedless fleet`: claims for new devices, the list of clients, revocation."""

from __future__ import annotations

import asyncio
import os
import time
import tomllib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from aggregator import lock, log
from aggregator.authorities import Authorities
from aggregator.config import LogLevel, Settings, load
from aggregator.enrollment import IssuedClaim, Registrar, terms_of
from aggregator.store.engine import Database
from fedless.console import clients, devices, link, trust
from fedless.console.terminal import FleetOption, duration_ms, moment, pair, print_table
from fedless.protocol.errors import Code, LocalError

app = typer.Typer(no_args_is_help=True)
clients.add_to(app)
app.command()(devices.update)
app.command()(trust.rotate_keys)
app.add_typer(trust.authority, name="authority")


@app.command()
def claim(
    fleet: FleetOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="How many.")] = 1,
    valid: Annotated[
        str, typer.Option(help="How long they are good: 30m, 24h, 7d. Default: as configured.")
    ] = "",
    name: Annotated[
        list[str] | None, typer.Option(help="Id of the client; once for each claim. Default: made up.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value, kept with the client.")] = None,
    qr: Annotated[bool, typer.Option("--qr", help="Show each claim as a QR code.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Print one-time claims: a device joins with one. They are secrets."""
    names, labels = name or [], dict(pair(text) for text in label or [])
    wanted = len(names) or count
    valid_ms, folder = duration_ms(valid), link.find_fleet(fleet)
    claims = _issue(folder, wanted, valid_ms, names, labels)
    for client_id, text, expires_at_ms in claims:
        typer.echo(f"# {client_id}, good until {moment(expires_at_ms)}, for one device", err=True)
        typer.echo(text)
        if qr:
            _print_qr(text)


@app.command("list")
def list_clients(fleet: FleetOption = None) -> None:
    """List the clients."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        every = operator.clients()
    table = Table(
        "client",
        "name",
        "state",
        "online",
        "last seen (UTC)",
        "reports",
        "refused",
        "certificate until",
        "labels",
        box=None,
    )
    for client in every:
        refused = ", ".join(f"{code} {count}" for code, count in sorted(client.refusals.items()))
        labels = ", ".join(f"{key}={value}" for key, value in sorted(client.labels.items()))
        table.add_row(
            client.client_id, client.name or "-", client.state, "yes" if client.online else "no",
            moment(client.last_seen_ms), str(client.reports), refused,
            moment(client.certificate_not_after_ms)[:10], labels,
        )  # fmt: skip
    if every:
        print_table(table)
    for client in every:
        if client.lacks:
            typer.echo(
                f"{client.client_id} lacks {', '.join(client.lacks)} (it has not renewed since)", err=True
            )
    online = sum(client.online for client in every)
    typer.echo(f"{len(every)} clients, {online} online", err=True)


@app.command()
def revoke(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="Id or name of the client.")],
    fleet: FleetOption = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the client.")] = "",
) -> None:
    """Take a client's certificates and claims from it, at once."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        operator.revoke(client, reason)
    typer.echo(
        f"{client} is revoked. It can join again with a new claim: `fedless fleet claim --name {client}`."
    )


@app.command("add-function")
def add_function(
    client: Annotated[str, typer.Argument(metavar="NAME", help="Id of the new client.")],
    platform: Annotated[str, typer.Option(help="aws-lambda, azure, google, knative, openfaas, openwhisk.")],
    config: Annotated[Path, typer.Option(help="The function's settings, TOML (docs/adapters.md).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The deployment to write, for `fedless function package`.")
    ] = Path("fedless-deployment.json"),
    fleet: FleetOption = None,
) -> None:
    """Register a cloud function as a client, and write what it is to be deployed with. No secret is in it."""
    try:
        settings = tomllib.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{config} cannot be read: {error}.") from error
    with link.open_link(link.find_fleet(fleet)) as operator:
        deployment = operator.add_function(client, platform, settings)
    out.write_text(deployment + "\n", "utf-8")
    typer.echo(f"{client} is registered on {platform}. Wrote {out}; package it with:")
    typer.echo(f"  fedless function package --target {platform} --deployment {out}")


def _issue(
    folder: Path, count: int, valid_ms: int, names: list[str], labels: dict[str, str]
) -> list[tuple[str, str, int]]:
    """Claims from the running service; from the store itself when none runs in this folder."""
    configuration = folder / link.CONFIGURATION
    if configuration.is_file():
        settings = load(configuration)
        log.set_up(LogLevel.WARNING, tracebacks=False)
        try:
            with lock.hold(settings.state.directory):
                issued = asyncio.run(_issue_here(settings, count, valid_ms, names, labels))
                return [(claim.client_id, claim.text, claim.expires_at_ms) for claim in issued]
        except LocalError as error:
            if error.code is not Code.STATE_LOCKED:
                raise
    with link.open_link(folder) as operator:
        claims = operator.claims(count, valid_ms, names, labels)
    return [(claim.client_id, claim.claim, claim.expires_at_ms) for claim in claims]


async def _issue_here(
    settings: Settings, count: int, valid_ms: int, names: list[str], labels: dict[str, str]
) -> list[IssuedClaim]:
    if not settings.listen.enrollment_port:
        detail = "The enrollment port is chosen when the aggregator starts, and a claim carries it."
        raise LocalError(Code.WRONG_STATE, detail, fix="Start it: `fedless aggregator serve`.")
    authorities = Authorities.load(settings.authority.directory, settings.fleet.name)
    database = Database.open(settings.database_url)
    try:
        registrar = Registrar(database, authorities, terms_of(settings), _clock, os.urandom)
        return await registrar.issue_claims(count, valid_ms=valid_ms, client_ids=names, labels=labels)
    finally:
        database.close()


def _clock() -> int:
    return time.time_ns() // 1_000_000


def _print_qr(text: str) -> None:
    import segno

    typer.echo("")
    segno.make(text, error="m").terminal(compact=True)
    typer.echo("")
