"""The files of a mosquitto for production: one that is a service of its own, perhaps on another machine.

Mutual TLS only, the user and client id are the certificate's, the ACL is the child's (`broker.py`), limits are set.
Called by `fedless broker config` and by `main`. `deploy/mosquitto/mosquitto.conf` is this text with its defaults; a
test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aggregator.broker import PACKET_BYTES_MAX, access_list, mutual_tls
from aggregator.config import Settings
from aggregator.enrollment import Registrar
from aggregator.founding import write_private
from fedless.protocol.errors import Code, LocalError

REVOCATION_FILE = "crl.pem"
HOME = Path("/etc/mosquitto/fedless")
PERSISTENCE = Path("/var/lib/mosquitto")


@dataclass(frozen=True)
class Listeners:
    """Where it listens; `websockets` 0: not by websockets; `address` empty: on all interfaces.

    mosquitto 2.0.11 with websockets does not read the CRL for them at its start, and may crash at a SIGHUP.
    """

    port: int = 8883
    websockets: int = 0
    address: str = ""


def configure(
    settings: Settings, out: Path, home: Path, listeners: Listeners, persistence: Path, revocation_list: bytes,
    authority_pem: bytes,
) -> None:  # fmt: skip
    """Writes all that the broker needs into `out` (mode 0600), to be read from `home`.

    Raises `LocalError` STATE_MISSING without the broker's certificate, CONFIG_INVALID if `out` cannot be written or
    a path has a space in it, which mosquitto would take as its end.
    """
    for path in (home, persistence):
        if not path.is_absolute() or any(letter.isspace() for letter in str(path)):
            detail = f"Expected absolute paths without spaces, found {str(path)!r}."
            raise LocalError(Code.CONFIG_INVALID, detail)
    own = settings.broker.directory
    try:
        files = {name: (own / name).read_bytes() for name in ("cert.pem", "cert.key")}
    except OSError as error:
        raise LocalError(Code.STATE_MISSING, f"{error}.", fix="Restore it from a back-up.") from error
    files |= {"authority.pem": authority_pem, "crl.pem": revocation_list}
    files["acl"] = access_list(settings.fleet.name).encode()
    text = configuration(home, listeners, persistence, settings.broker.max_queued_messages)
    files["mosquitto.conf"] = text.encode()
    try:
        for name, content in files.items():
            write_private(out / name, content)
    except OSError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{error}.") from error


def keep_revocation_list(settings: Settings, registrar: Registrar) -> None:
    """Keeps the list of revoked certificates in a file, for whoever gives it to a broker that we did not start."""
    files = [settings.state.directory / REVOCATION_FILE]
    if settings.broker.revocation_list:
        files.append(Path(settings.broker.revocation_list))

    def keep(_denied: frozenset[str]) -> None:
        for file in files:
            write_private(file, registrar.revocation_list())

    registrar.on_denied = keep
    keep(registrar.callers.denied)


def configuration(
    home: Path = HOME,
    listeners: Listeners = Listeners(),
    persistence: Path = PERSISTENCE,
    max_queued: int = 1000,
) -> str:
    """mosquitto.conf; `home` is where its files are."""
    parts = [_GENERAL.format(home=home, persistence=persistence, queued=max_queued, packet=PACKET_BYTES_MAX)]
    for port, protocol in ((listeners.port, "mqtt"), (listeners.websockets, "websockets")):
        if port:
            where = f"{port} {listeners.address}".rstrip()
            parts.append(_LISTENER.format(where=where, protocol=protocol) + mutual_tls(home))
    return "\n".join(parts)


_GENERAL = """\
# Made by `fedless broker config`. Each client is who its certificate says; nobody else is let in.
per_listener_settings false
allow_anonymous false
acl_file {home}/acl

# What waits for a device that is away, and for how long; the queues outlive a restart.
persistence true
persistence_location {persistence}/
autosave_interval 60
persistent_client_expiration 8d
max_queued_messages {queued}
max_queued_bytes 16777216
max_inflight_messages 20
max_packet_size {packet}
max_keepalive 3600
# Bytes of memory at most; a machine with a large fleet takes more (docs/operations.md).
memory_limit 536870912

connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
"""
_LISTENER = """\
listener {where}
protocol {protocol}
max_connections 20000
"""
