"""The service's composition: every part is made here, in order, and taken down in the other order.

Called by `fedless aggregator serve`. The real clock and the operating system's randomness enter
here and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import structlog
import uvloop

from aggregator import lock, log, reload
from aggregator.blobs import Blobs
from aggregator.broker import Broker, BrokerFiles
from aggregator.config import BrokerKind, Settings, load
from aggregator.coordinator import Coordinator
from aggregator.enrollment import Registrar, at_each
from aggregator.epochs import KeyEpochs, Signing
from aggregator.evaluation import Evaluator
from aggregator.eviction import Evictions
from aggregator.exchange import calls_to_helper
from aggregator.founding import ANY, write_private
from aggregator.front import FailedClaims, Front
from aggregator.helpers import HelperRounds
from aggregator.interfaces import Clock, Sleep, Waker
from aggregator.invoke import Wakers
from aggregator.masked import MaskedMode, Pairwise
from aggregator.means import Means
from aggregator.mosquitto import keep_revocation_list
from aggregator.objects import open_blobs
from aggregator.orders import Orders
from aggregator.pairwise import PairwiseRounds
from aggregator.presence import Presence
from aggregator.reload import Held, Reload
from aggregator.returns import Returns
from aggregator.rollout import Rollout
from aggregator.runs import News, Runs
from aggregator.service import (
    EnrollmentService,
    FleetService,
    RoundsService,
    Server,
    ServerIdentity,
    bind,
    new_server,
)
from aggregator.service_masked import Masks
from aggregator.service_operator import OperatorService
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from aggregator.sweep import Sweep
from aggregator.tickets import Tickets
from aggregator.uploads import Spool
from aggregator.wake import MqttAccess, MqttWaker
from cloud_adapters import prices
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Endpoints, Mode

ENDPOINTS_FILE = "endpoints.json"
LOOPBACK = "127.0.0.1"
STANDBY_S = 1.0
_log = structlog.get_logger("aggregator")


def serve(configuration: Path, *, debug: bool = False, standby: bool = False) -> None:
    """Runs the service until SIGTERM or SIGINT. Raises `LocalError` when it cannot start.

    `standby`: while another one works on this state directory or database, wait for its end and take over.
    """
    settings = load(configuration)
    log.set_up(settings.log.level, tracebacks=debug)
    told = False
    while True:
        try:
            with lock.hold(settings.state.directory):
                uvloop.run(_serve(settings))
            return
        except LocalError as error:
            if not standby or error.code is not Code.STATE_LOCKED:
                raise
            if not told:
                _log.info("aggregator_standing_by", why=error.detail)
            told = True
        time.sleep(STANDBY_S)


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    lost: list[LocalError] = []
    loop = asyncio.get_running_loop()

    def lose(error: LocalError) -> None:
        lost.append(error)
        loop.call_soon_threadsafe(stopping.set)

    async with running(settings, lose) as (endpoints, held):
        asked: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: asked.add(asyncio.ensure_future(held.try_to())))
        addresses = {"grpc": endpoints.fleet[0], "mqtt": endpoints.mqtt[0], "enroll": endpoints.enrollment[0]}
        _log.info("aggregator_ready", fleet=settings.fleet.name, **addresses)
        _notify("READY=1")
        await stopping.wait()
        _log.info("aggregator_stopping")
        _notify("STOPPING=1")
    _log.info("aggregator_stopped")
    if lost:
        raise lost[0]


def clock() -> int:
    """Unix milliseconds now."""
    return time.time_ns() // 1_000_000


async def sleep(duration_ms: int) -> None:
    """Waits."""
    await asyncio.sleep(max(duration_ms, 0) / 1000)


@dataclass(frozen=True)
class Doors:
    """The two gRPC servers, bound but not started, and where everything can be reached."""

    fleet_server: Server
    enrollment_server: Server
    fleet_port: int
    endpoints: Endpoints


@dataclass(frozen=True)
class Core:
    """What decides: rounds, runs, and the blobs that both use."""

    blobs: Blobs
    coordinator: Coordinator
    masks: Masks
    runs: Runs
    orders: Orders
    returns: Returns


class Outside(TypedDict):
    """What the core asks of the world, and whom it tells."""

    clock: Clock
    sleep: Sleep
    on_step: Callable[[str], None]


@asynccontextmanager
async def running(
    settings: Settings, on_lost: Callable[[LocalError], None] = lambda _error: None
) -> AsyncIterator[tuple[Endpoints, Reload]]:
    """The whole service while the block runs; where it can be reached, and what takes new keys up. Raises `LocalError`.

    `on_lost` hears, from another thread, that another aggregator has taken the database over.
    """
    async with AsyncExitStack() as exits:
        held = reload.read(settings, clock())
        reload.renew_servers(settings, held.authorities, clock())
        holder = Reload(settings, held, clock)
        database = Database.open(
            settings.database_url, wait_s=settings.state.database_wait_s, on_lost=on_lost
        )
        exits.callback(database.close)
        await database.run(store.nobody_online)

        registrar = Registrar(database, held.authorities, held.terms, clock, os.urandom)
        await registrar.load()
        doors = await _open_doors(exits, settings, registrar, holder)
        registrar.terms = replace(held.terms, endpoints=doors.endpoints)
        holder.held = replace(held, terms=registrar.terms)
        holder.tell(lambda now: registrar.follow(now.authorities, now.terms))
        devices = await _open_waker(exits, settings, database, registrar, holder)
        waker = _open_invokers(settings, database, registrar, devices)
        exits.push_async_callback(waker.close)
        core = _open_core(settings, database, registrar, waker, holder)
        for part in (core.masks.epochs, core.runs, core.orders, core.returns):
            exits.push_async_callback(part.close)

        stall_s = settings.limits.progress_timeout_s
        for service in (
            FleetService(registrar, database, core.blobs, core.orders, clock),
            RoundsService(registrar.callers, core.coordinator, core.masks, clock, stall_s),
            OperatorService(registrar, database, core.blobs, core.runs, core.orders, holder, clock, stall_s),
        ):
            service.add_to(doors.fleet_server)
        for server in (doors.enrollment_server, doors.fleet_server):
            await server.start()
            exits.push_async_callback(server.stop, settings.limits.stop_timeout_s)
        await core.runs.resume_all()
        sweep = Sweep(database, core.blobs, settings.state.keep_models, clock=clock, sleep=sleep)
        exits.callback(asyncio.create_task(sweep.run()).cancel)
        await core.orders.resume()
        rollout = Rollout(registrar, core.orders, clock, os.urandom)
        exits.push_async_callback(rollout.close)
        rollout.begin()
        holder.tell(lambda _now: rollout.again())
        web = await _open_web(exits, settings, database, registrar, devices, holder)
        _write_endpoints(settings, doors, web)
        exits.callback(asyncio.create_task(holder.daily(sleep)).cancel)
        yield doors.endpoints, holder


async def _open_web(
    exits: AsyncExitStack, settings: Settings, database: Database, registrar: Registrar, devices: MqttWaker,
    holder: Reload,
) -> str:  # fmt: skip
    """The dashboard and its siblings; where they are, or ""."""
    wanted, listen = settings.web, settings.listen
    if wanted.port is None:
        return ""
    from aggregator.web.server import Guard, Seen, Web  # noqa: PLC0415 - templates and metrics: 10 MB

    guard = Guard(
        listen.directory / "cert.pem", listen.directory / "cert.key", holder.held.authorities.pem,
        registrar.callers,
    )  # fmt: skip
    seen = Seen(settings.fleet.name, database, clock, devices.is_connected, settings.state.directory)
    web = Web(seen, guard)
    url = await web.start(wanted.address, wanted.port)
    exits.push_async_callback(web.stop)
    holder.tell(lambda now: web.follow(now.authorities.pem))
    _log.info("web_ready", url=url)
    return url


def _open_core(
    settings: Settings, database: Database, registrar: Registrar, waker: Waker, holder: Reload
) -> Core:
    state, terms, news = settings.state.directory, registrar.terms, News()
    blobs, spool = open_blobs(settings.state), Spool(state / "spool")
    tickets = Tickets(
        database, waker, holder.sign_ticket, fleet=settings.fleet.name,
        clock=clock, random=os.urandom, sleep=sleep, endpoints=terms.endpoints.fleet,
    )  # fmt: skip
    outside: Outside = {"clock": clock, "sleep": sleep, "on_step": news.tell}
    signing = Signing(holder.sign, registrar.callers.member)
    epochs = KeyEpochs(database, tickets, signing, random=os.urandom, **outside)
    pairwise = PairwiseRounds(database, epochs, tickets, signing, **outside)
    modes: dict[Mode, MaskedMode] = {Mode.PAIRWISE: Pairwise(epochs, pairwise, os.urandom)}
    if holder.held.party is not None:
        calls = calls_to_helper(settings, holder.held.party, clock, os.urandom)
        holder.tell(lambda now: calls.follow(now.party) if now.party else None)
        modes[Mode.HELPER] = HelperRounds(database, spool, calls, signing, random=os.urandom, **outside)
    coordinator = Coordinator(database, spool, tickets, masked=modes, **outside)
    evaluator = Evaluator(blobs, state / "functions", holder.publishers)
    means = Means(
        database, blobs, coordinator, tickets, registrar, evaluator,
        random=os.urandom, masked=modes, **outside,
    )  # fmt: skip
    orders = Orders(database, blobs, tickets, holder.publishers, clock, os.urandom)
    returns = Returns(database, tickets, clock=clock, sleep=sleep)
    registrar.on_online.append(returns.came)
    masks, runs = Masks(database, epochs, pairwise), Runs(means, spool, news)
    return Core(blobs, coordinator, masks, runs, orders, returns)


async def _open_doors(
    exits: AsyncExitStack, settings: Settings, registrar: Registrar, holder: Reload
) -> Doors:
    listen, limits, authorities = settings.listen, settings.limits, holder.held.authorities
    identity = ServerIdentity(listen.directory, authorities.pem)
    fleet_server = new_server(limits.concurrent_calls)
    fleet_port = bind(
        fleet_server, listen.address, listen.fleet_port, identity.credentials(client_certificates=True)
    )
    enrollment_server = new_server(limits.enrollment_connections)
    served, most = authorities.serving.pem, limits.enrollment_connections
    front = Front(served, most, limits.enrollment_connections_per_address)
    failed = FailedClaims(limits.failed_claims_per_minute, clock)
    EnrollmentService(registrar, failed, front.address_of).add_to(enrollment_server)
    inner_port = bind(enrollment_server, LOOPBACK, 0, identity.credentials(client_certificates=False))
    exits.push_async_callback(front.stop)

    def follow(now: Held) -> None:
        identity.follow(now.authorities.pem)
        front.authority_pem = now.authorities.serving.pem

    holder.tell(follow)
    enrollment_port = await front.start(listen.address, listen.enrollment_port, inner_port)
    if settings.broker.kind is BrokerKind.EXTERNAL:
        keep_revocation_list(settings, registrar)
    # The broker last: whatever else is wrong is said before a process is started.
    mqtt = settings.broker.addresses or await _open_broker(exits, settings, registrar, holder)
    endpoints = Endpoints(at_each(listen.hosts, fleet_port), mqtt, at_each(listen.hosts, enrollment_port))
    return Doors(fleet_server, enrollment_server, fleet_port, endpoints)


async def _open_broker(
    exits: AsyncExitStack, settings: Settings, registrar: Registrar, holder: Reload
) -> tuple[str, ...]:
    directory = settings.broker.directory
    files = BrokerFiles(holder.held.authorities.pem, directory / "cert.pem", directory / "cert.key")
    broker = Broker(
        settings.fleet.name,
        settings.state.directory,
        files,
        address=settings.listen.address,
        port=settings.broker.port,
        max_queued=settings.broker.max_queued_messages,
    )
    exits.push_async_callback(broker.stop)
    port = await broker.start(registrar.revocation_list())
    registrar.on_denied = lambda _: broker.revoke(registrar.revocation_list())
    holder.wait_for(lambda now: broker.follow(now.authorities.pem, registrar.revocation_list()))
    return at_each(settings.listen.hosts, port)


async def _open_waker(
    exits: AsyncExitStack, settings: Settings, database: Database, registrar: Registrar, holder: Reload
) -> MqttWaker:
    listen, authorities = settings.listen, holder.held.authorities
    addresses = holder.held.terms.endpoints.mqtt
    if settings.broker.kind is BrokerKind.CHILD:  # not by a name that perhaps only devices can resolve
        addresses = at_each((_own_host(listen.address),), int(addresses[0].rpartition(":")[2]))
    access = MqttAccess(
        settings.fleet.name, addresses, authorities.pem,
        listen.directory / "cert.pem", listen.directory / "cert.key",
    )  # fmt: skip
    evictions = Evictions(access, authorities.serving, settings.state.directory, clock, registrar.gone)
    exits.push_async_callback(evictions.close)
    registrar.on_revoked = evictions.begin
    presence = Presence(database, evictions, clock, registrar.came)
    waker = MqttWaker(access, clock, presence.heard)
    exits.push_async_callback(waker.stop)

    def follow(now: Held) -> None:
        known = replace(access, authority=now.authorities.pem)
        waker.follow(known)
        evictions.follow(known, now.authorities.serving)

    holder.tell(follow)
    await waker.start()
    return waker


def _open_invokers(settings: Settings, database: Database, registrar: Registrar, devices: Waker) -> Wakers:
    state = settings.state.directory
    table = state / "prices.toml"
    return Wakers(
        devices,
        registrar.functions,
        lambda: registrar.terms.endpoints.enrollment[0],
        database,
        open_blobs(settings.state),
        prices.load(table) if table.exists() else prices.load(),
        clock,
    )


def _own_host(address: str) -> str:
    """How this machine reaches its own ports."""
    return {ANY: LOOPBACK, "[::]": "[::1]"}.get(address, address)


def _write_endpoints(settings: Settings, doors: Doors, web: str) -> None:
    values = {
        "fleet": doors.endpoints.fleet,
        "mqtt": doors.endpoints.mqtt,
        "enrollment": doors.endpoints.enrollment,
        "operator": at_each((_own_host(settings.listen.address),), doors.fleet_port),
        "web": [web] if web else [],
    }
    write_private(settings.state.directory / ENDPOINTS_FILE, json.dumps(values, indent=2).encode())


def _notify(state: str) -> None:
    """Tells systemd, if it started us with Type=notify (sd_notify(3): one datagram)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
