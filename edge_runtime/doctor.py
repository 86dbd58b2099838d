"""`fedless-edge doctor`: what is wrong with this device, and what to do about it, one line for each thing looked at."""

from __future__ import annotations

import importlib
import platform
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge_runtime import profile, sandbox
from edge_runtime.clock import BUILT_AT_MS, unix_ms
from edge_runtime.config import FILE, EdgeConfig, load
from edge_runtime.enroll import clock_complaint
from edge_runtime.journal import FILE as JOURNAL
from edge_runtime.journal import Journal
from edge_runtime.keystore import Identity, Keystore
from edge_runtime.status import agent
from edge_runtime.wake import CONNECT_S, tls_context
from fedless.protocol.errors import FedlessError

DAY_MS = 86_400_000
MEMORY_LOW_MB = 100
DISK_LOW_MB = 200
RENEW_BEFORE_MS = 14 * DAY_MS
T = TypeVar("T")
_WHEELS = {"grpcio": "grpc", "paho-mqtt": "paho.mqtt", "cryptography": "cryptography", "numpy": "numpy"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is what to do where it is not well."""

    what: str
    well: bool
    found: str
    fix: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{'ok  ' if self.well else 'BAD '} {self.what:<12} {self.found}" + (
            f" {self.fix}" if self.fix else ""
        )


def well(what: str, found: str) -> Finding:
    """It is as it should be."""
    return Finding(what, True, found)  # noqa: FBT003 - this is where the flag gets its name


def bad(what: str, found: str, fix: str = "") -> Finding:
    """It is not."""
    return Finding(what, False, found, fix)  # noqa: FBT003


def examine(state: Path) -> Iterator[Finding]:
    """Look at everything, in an order in which the first trouble explains the later ones."""
    yield _wheels()
    yield _runtime()
    yield _memory()
    yield from _state(state)


def _state(state: Path) -> Iterator[Finding]:
    if not state.is_dir():
        yield bad("state", f"There is no {state}.", "Run `fedless-edge enroll`.")
        return
    yield _disk(state)
    yield _sandbox()
    config = _attempt("config", lambda: load(state / FILE))
    if isinstance(config, EdgeConfig):
        yield from _data(config)
    else:
        yield config
    own = _attempt("identity", Keystore(state).load)
    if not isinstance(own, Identity):
        yield own
        return
    yield _files(state, own)
    yield _journal(state)
    yield _certificate(own)
    yield _clock_by_itself()
    yield _aggregator(state, own)
    for address in own.endpoints.mqtt:
        yield _broker(state, own, address)
    yield _agent(state)


def _attempt(what: str, call: Callable[[], T]) -> T | Finding:
    try:
        return call()
    except FedlessError as error:
        return bad(what, str(error))


def _sandbox() -> Finding:
    """How functions are kept apart, tried out; what a weaker one leaves open."""
    level = sandbox.probe()
    force = ", ".join(level.mechanisms)
    if level.full:
        return well("sandbox", force)
    fix = "Install bubblewrap (`apt-get install bubblewrap`) and allow user namespaces."
    if not level.namespaces and sandbox.LANDLOCK in level.mechanisms and sandbox.SECCOMP in level.mechanisms:
        return bad("sandbox", f"{force}; functions share the system's processes. {level.why_not}", fix)
    lacking = "functions could read this device's files" if not level.namespaces else "no system-call filter"
    return bad("sandbox", f"{force}; {lacking}. {level.why_not}", fix)


def _wheels() -> Finding:
    broken = []
    for package, module in _WHEELS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            broken.append(f"{package} ({error})")
    if broken:
        return bad("wheels", f"Cannot import {'; '.join(broken)}.", "Install fedless[edge].")
    return well(
        "wheels", f"fedless {profile.version() or 'from sources'}, Python {platform.python_version()}"
    )


def _runtime() -> Finding:
    found = profile.tflite_runtime()
    if not found:
        return bad("runtime", "There is no TFLite runtime.", "Install fedless[edge] (ai-edge-litert).")
    return well("runtime", f"{found} on {platform.machine()}")


def _memory() -> Finding:
    total, available = profile.memory_mb()
    found = f"{available} MB of {total} MB available"
    if available < MEMORY_LOW_MB:
        return bad("memory", f"{found}.", "Training the smallest models takes about 100 MB: stop something.")
    return well("memory", found)


def _disk(state: Path) -> Finding:
    free_mb = profile.disk_free_bytes(state) >> 20
    if free_mb < DISK_LOW_MB:
        return bad("disk", f"{free_mb} MB free at {state}.", "Free some space, or lower cache_mb.")
    return well("disk", f"{free_mb} MB free")


def _data(config: EdgeConfig) -> Iterator[Finding]:
    if not config.data:
        yield bad("data", "No data source is described.", f"Add [data.default] to {FILE}.")
    for name, source in config.data.items():
        if not Path(source.path).exists():
            yield bad("data", f"{name}: {source.path} does not exist.", f"Check [data.{name}] in {FILE}.")
        else:
            yield well("data", f"{name}: {source.kind} at {source.path}")


def _files(state: Path, own: Identity) -> Finding:
    loose = Keystore(state).open_files()
    if loose:
        return bad("identity", f"Others may read {', '.join(loose)}.", "Run `chmod 600` on them.")
    return well("identity", f"{own.client_id} of fleet {own.fleet}")


def _journal(state: Path) -> Finding:
    if not (state / JOURNAL).exists():
        return well("journal", "empty")
    try:
        journal = Journal.open(state / JOURNAL, read_only=True)
        try:
            journal.check()
            waiting = len(journal.reports())
        finally:
            journal.close()
    except FedlessError as error:
        return bad("journal", str(error))
    return well("journal", f"sound, {waiting} reports waiting")


def _certificate(own: Identity) -> Finding:
    left_days = (own.not_after_ms - unix_ms()) / DAY_MS
    if left_days <= 0:
        return bad(
            "certificate",
            f"By this clock it ended {-left_days:.0f} days ago.",
            "Set the clock, or enroll again.",
        )
    if left_days * DAY_MS < RENEW_BEFORE_MS:
        fix = "It is renewed after the next round; else enroll again before that."
        return bad("certificate", f"It ends in {left_days:.0f} days.", fix)
    return well("certificate", f"good for {left_days:.0f} days")


def _clock_by_itself() -> Finding:
    if unix_ms() < BUILT_AT_MS:
        built = time.strftime("%Y-%m-%d", time.gmtime(BUILT_AT_MS / 1000))
        return bad("clock", f"It says a time before this program was built ({built}).", "Set the clock.")
    return well("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _aggregator(state: Path, own: Identity) -> Finding:
    """Call it with this device's certificate, and compare the clocks."""
    from edge_runtime.link import Link  # noqa: PLC0415 - `doctor` must run where gRPC cannot be imported

    status = profile.device_status(state, 0.0, {})
    places = own.endpoints.fleet
    try:
        with Link(places, own.server_name, own.key_pem, own.chain_pem, own.authority_pem) as line:
            theirs_ms = line.report_status(status)
    except FedlessError as error:
        return bad("aggregator", f"{', '.join(places)}: {error}")
    complaint = clock_complaint(unix_ms() - theirs_ms)
    if complaint:
        return bad("clock", complaint)
    return well("aggregator", f"{places[0]} answers; the clocks are {abs(unix_ms() - theirs_ms)} ms apart")


def _broker(state: Path, own: Identity, address: str) -> Finding:
    """TCP and TLS only: an MQTT session would take the agent's place."""
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as raw,
            tls_context(str(state), own.server_name).wrap_socket(raw) as secured,
        ):
            version = secured.version()
    except (OSError, ValueError) as error:
        return bad(
            "broker",
            f"{address}: {type(error).__name__}: {error}.",
            "Is it running, and may this device reach it?",
        )
    return well("broker", f"{address} answers with {version}")


def _agent(state: Path) -> Finding:
    told = agent(state)
    if told["state"] == "connected":
        return well("agent", f"connected to {told.get('reason')}")
    if not told["running"]:
        return bad("agent", "It does not run.", "Start it with `fedless-edge run`, or its systemd unit.")
    return bad("agent", f"{told['state']}: {told.get('reason')}.")
