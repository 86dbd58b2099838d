"""`fedless fleet rotate-keys` and `fedless fleet authority`: keys and authorities that follow one another.

They change files in the fleet's directory, step by step, let the running service take them up, and say what is to be
done next. A step that devices would be lost by is refused with their names, unless it is forced.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aggregator import authorities as rollover
from aggregator.authorities import Authorities, Phase
from aggregator.config import BrokerKind, Settings, load
from aggregator.enrollment import CERTIFICATE, Registrar, publisher_ring, terms_of, ticket_ring
from aggregator.link import read_second_party
from aggregator.owner import ROOT
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from aggregator.store.functions import ids as function_ids
from fedless.console.link import CONFIGURATION, Link, find_fleet, read_access
from fedless.console.terminal import FleetOption
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.trust import TrustKind

NAMED_MAX = 20
ForceOption = Annotated[
    bool, typer.Option("--force", help="Although devices are behind: those that are named will be lost.")
]
authority = typer.Typer(no_args_is_help=True)


class SigningKind(StrEnum):
    """The keys that can be replaced by themselves."""

    TICKET = "ticket"
    PUBLISHER = "publisher"


@authority.callback()
def _authority() -> None:
    """Replace the fleet's authority without visiting a device."""


def rotate_keys(
    kind: Annotated[SigningKind, typer.Argument(help="Which key: of wake-ups or of bundles.")],
    fleet: FleetOption = None,
    key: Annotated[
        Path | None, typer.Option(help="publisher: its present key, if not publisher/publisher.key.")
    ] = None,
    *,
    end: Annotated[bool, typer.Option("--end", help="Let the new key take the old one's place.")] = False,
    force: ForceOption = False,
) -> None:
    """Replace a signing key: make the next one, later --end. The old one signs until then."""
    folder = find_fleet(fleet)
    settings = _owned(folder)
    ring = ticket_ring(settings) if kind is SigningKind.TICKET else publisher_ring(settings, key)
    what = kind.value
    if not end:
        with taken_up(folder):
            made = ring.begin(_clock())
            typer.echo(
                f"The next {what} key is in {ring.following}; the old one signed list {made.number} of both."
            )
        _say_next([f"When all have followed: fedless fleet rotate-keys {what} --end"])
        return
    _hold_back(settings, {TrustKind(what).value}, force=force)
    with taken_up(folder):
        made = ring.end(_clock())
        typer.echo(f"The new {what} key signs from now on; list {made.number} is without the old one.")
    more = ["Deploy cloud functions again: they follow no lists."]
    if kind is SigningKind.PUBLISHER:
        more.append(
            "Sign again what devices may still have to fetch: they refuse the old key when they have renewed."
        )
    _say_next(more)


@authority.command("show")
def show(fleet: FleetOption = None) -> None:
    """Show the fleet's authorities, how far one has followed another, and who is behind."""
    settings = load(find_fleet(fleet) / CONFIGURATION)
    now = _authorities(settings)
    typer.echo(f"phase      {now.phase.value}")
    for one in now.believed:
        roles = [
            role
            for role, who in (("signs for clients", now.issuing), ("for servers", now.serving))
            if who.der == one.der
        ]
        typer.echo(f"authority  {one.digest}  {', '.join(roles)}".rstrip())
    behind, functions = _behind(settings)
    for client_id, lacking in behind.items():
        typer.echo(f"behind     {client_id}: {', '.join(lacking)}")
    if now.phase is not Phase.SETTLED:
        for client_id in functions:
            typer.echo(f"function   {client_id}: deploy it again before the old authority is dropped")


@authority.command("roll-over")
def roll_over(
    fleet: FleetOption = None,
    *,
    force: ForceOption = False,
) -> None:
    """Take the next step: make a new authority, let it issue, drop the old one. Say what is to be done then."""
    folder = find_fleet(fleet)
    settings = _owned(folder)
    with taken_up(
        folder
    ):  # by the operator's files of before the step: servers change theirs when they take it up
        entered, steps = _step(settings, force=force)
        if rollover.renewed_operator(folder / "operator", entered, _clock()):
            typer.echo(
                f"{folder / 'operator'} has its new files; copies of it elsewhere need them, too.", err=True
            )
    _say_next(steps)


def _step(settings: Settings, *, force: bool) -> tuple[Authorities, list[str]]:
    """The next step in files, and what is to be done after it."""
    directory, name = settings.authority.directory, settings.fleet.name
    now = _authorities(settings)
    if now.phase is Phase.SETTLED:
        entered = rollover.begin(directory, name, _clock())
        typer.echo(
            "cross-trust: there is a new authority, which the old one has signed; the old one still issues."
        )
        return entered, [*_by_hand(settings), "When all have followed: fedless fleet authority roll-over"]
    if now.phase is Phase.CROSS_TRUST:
        _hold_back(settings, {TrustKind.AUTHORITY.value}, force=force)
        entered = rollover.issue(directory, name)
        typer.echo(
            "issuing: clients get certificates of the new authority; servers keep the old one's until the end."
        )
        return entered, ["When all have one: fedless fleet authority roll-over"]
    _hold_back(settings, {TrustKind.AUTHORITY.value, CERTIFICATE}, force=force)
    _check_helper(settings, now)
    entered = rollover.retire(directory, name, _clock())
    typer.echo("settled: the old authority is dropped everywhere, and its key is removed.")
    return entered, [*_by_hand(settings), "Claims of before are void: issue new ones."]


@contextmanager
def taken_up(folder: Path) -> Iterator[None]:
    """What is written here is taken up by the service of this folder at its end, if one runs.

    Raises `FedlessError`, the files being written, when the service cannot take them up.
    """
    try:
        access = read_access(folder)
    except FedlessError:  # no operator's files here, or it has never started
        access = None
    yield
    fix = "Let it: `systemctl reload fedless-aggregator`, or start it again."
    if access is None:
        typer.echo(f"If the aggregator runs, it has not been told. {fix}", err=True)
        return
    try:
        with Link(access) as operator:
            changed = operator.reload()
    except PeerError as error:
        if error.code is not Code.AGGREGATOR_UNREACHABLE:
            detail = f"It is written, but the running aggregator cannot take it up: {error.detail or error}"
            raise LocalError(
                error.code, detail, fix="Mend that; then `fedless aggregator reload`."
            ) from error
        typer.echo("The aggregator does not run; it takes this up when it starts.", err=True)
    else:
        typer.echo(f"The running aggregator has taken it up: {', '.join(changed) or 'nothing new'}.")


def _by_hand(settings: Settings) -> list[str]:
    """What nobody but the operator can bring about, before anything is dropped."""
    steps = []
    if settings.broker.kind is BrokerKind.EXTERNAL:
        steps.append(
            "Broker: `fedless broker config OUT`; copy authority.pem, crl.pem, cert.pem and cert.key there, and "
            "restart it (a reload does not read authority.pem)"
        )
    if settings.helper.exists:
        trusted = settings.authority.directory / rollover.TRUSTED
        steps.append(
            f"Helper: give its operator {trusted} for its authority.pem, and when the new authority issues a new "
            "certificate (`fedless helper certify`), in helper/ here as well; it starts again"
        )
    steps.append(
        "Cloud functions: `fedless fleet add-function`, package and deploy again, where there are any"
    )
    return steps


def _say_next(more: Iterable[str]) -> None:
    steps = [
        "The aggregator asks devices to renew, those that are there and each one that comes;",
        "`fedless fleet list` shows who is behind (lacks).",
    ]
    typer.echo("Next:", err=True)
    for step in (*steps, *more):
        typer.echo(f"  {step}", err=True)


def _hold_back(settings: Settings, needed: set[str], *, force: bool) -> None:
    """Raises `LocalError` WRONG_STATE while devices are behind with what is needed; forced, it names them."""
    behind, _ = _behind(settings)
    waiting = sorted(client_id for client_id, lacking in behind.items() if needed & set(lacking))
    if not waiting:
        return
    named = ", ".join(waiting[:NAMED_MAX]) + (" ..." if len(waiting) > NAMED_MAX else "")
    if not force:
        detail = f"{len(waiting)} devices have not followed yet: {named}."
        fix = "Wait for them, revoke those that are gone, or --force: who is behind may have to join again."
        raise LocalError(Code.WRONG_STATE, detail, fix=fix)
    typer.echo(f"Forced, although {len(waiting)} devices are behind: {named}.", err=True)


def _check_helper(settings: Settings, now: Authorities) -> None:
    if not settings.helper.exists:
        return
    try:
        read_second_party(settings.helper, now.issuing.der, settings.fleet.name, _clock())
    except LocalError as error:
        detail = "The helper's certificate is not of the new authority."
        fix = "Certify it again: `fedless helper certify`, for the helper and for helper/cert.pem here."
        raise LocalError(Code.WRONG_STATE, detail, fix=fix) from error


def _behind(settings: Settings) -> tuple[dict[str, list[str]], list[str]]:
    """What each device lacks, as far as it has told, and which clients are cloud functions."""
    if not settings.state.database and not (settings.state.directory / "fedless.db").exists():
        return {}, []
    database = Database.open(settings.database_url, sole=False)
    try:
        registrar = Registrar(database, _authorities(settings), terms_of(settings), _clock, os.urandom)
        behind = asyncio.run(registrar.behind())
        every = database.run_now(lambda c: (store.all_clients(c), function_ids(c)))
    finally:
        database.close()
    functions = [
        row.client_id for row in every[0] if row.client_id in every[1] and row.state == store.ENROLLED
    ]
    return {row.client_id: lacking for row, lacking in behind}, functions


def _owned(folder: Path) -> Settings:
    """The settings, if what is written here will be readable by the service. Raises `LocalError` WRONG_STATE."""
    settings = load(folder / CONFIGURATION)
    owner = settings.authority.directory.stat().st_uid
    if os.geteuid() not in {owner, ROOT}:  # root gives what it writes to the folder's owner
        detail = f"{settings.authority.directory} belongs to user {owner}, who could not read new keys of another one."
        raise LocalError(
            Code.WRONG_STATE, detail, fix=f"Run this as that user: `sudo -u '#{owner}' fedless ...`."
        )
    return settings


def _authorities(settings: Settings) -> Authorities:
    return Authorities.load(settings.authority.directory, settings.fleet.name)


def _clock() -> int:
    return time.time_ns() // 1_000_000
