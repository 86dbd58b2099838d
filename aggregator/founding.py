"""Makes a fleet's directory: keys, certificates, configuration; all of it or nothing.

Called by `fedless init` and by local experiments. Everything is written to a sibling directory
first and renamed into place, so a crash leaves no half-made fleet. Directories are 0700, files 0600.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from aggregator import owner
from aggregator.authority import SERVER_DAYS, Authority
from fedless.protocol import identity
from fedless.protocol.crypto import ed25519_pem, ed25519_public
from fedless.protocol.errors import Code, LocalError, PeerError

KEY_BYTES = 32
HEAD = b"""\
# Settings of `fedless aggregator serve`; every other key is described in deploy/samples/aggregator.toml.

"""
ANY = "0.0.0.0"  # noqa: S104 - devices are elsewhere; who may call is decided by certificates


@dataclass(frozen=True)
class Ports:
    """Where the three services listen; 0: any free port, chosen at each start."""

    fleet: int = 7443
    enrollment: int = 7444
    mqtt: int = 8883


def found_fleet(directory: Path, name: str, host: str, ports: Ports, now_ms: int) -> Authority:
    """Writes a new fleet into `directory`, which must not exist (or be empty).

    Raises `LocalError` STATE_EXISTS, CONFIG_INVALID for a bad name or host, or DISK_FULL.
    """
    _check(directory, name, host, ports)
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            authority = _write_all(draft, name, host, ports, now_ms)
            draft.rename(directory)  # replaces an empty directory, fails on any other
            _sync(directory.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        code = Code.DISK_FULL if error.errno == errno.ENOSPC else Code.CONFIG_INVALID
        raise LocalError(code, f"{error}.") from error
    return authority


def renew_server(directory: Path, authority: Authority, role: identity.Role, now_ms: int) -> bool:
    """Replaces a server's `cert.pem` in time, its key stays; whether it did. Called at every start.

    Raises `LocalError` STATE_MISSING or STATE_CORRUPT.
    """
    try:
        chain, key = (directory / "cert.pem").read_bytes(), (directory / "cert.key").read_bytes()
    except OSError as error:
        detail = f"Expected cert.pem and cert.key in {directory}."
        raise LocalError(Code.STATE_MISSING, detail, fix="Restore them from a back-up.") from error
    issued = authority.renewed(chain, key, identity.Name(authority.fleet, role, "main"), now_ms)
    if issued is not None:
        write_private(directory / "cert.pem", issued.chain_pem)
    return issued is not None


def fleet_name(text: str) -> str:
    """A fleet name made of a directory's: lower case, other characters become '-'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].strip("-") or "fleet"


def own_address() -> str:
    """The address by which this machine reaches others (no packet is sent); loopback when it is alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


def _check(directory: Path, name: str, host: str, ports: Ports) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        detail = f"Expected a new or empty directory, found files in {directory}."
        raise LocalError(Code.STATE_EXISTS, detail, fix="Choose another directory.")
    try:
        identity.check_id(name, "fleet name")
    except PeerError as error:
        raise LocalError(error.code, error.detail, fix="Give another one with --fleet.") from error
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]", host):
        detail = f"Expected a host name or an address ([...] around an IPv6 one), found {host[:80]!r}."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="Give another one with --host.")
    chosen = [port for port in (ports.fleet, ports.enrollment, ports.mqtt) if port]
    if len(set(chosen)) < len(chosen) or not all(0 < port < 2**16 for port in chosen):
        detail = f"Expected three different ports from 1 to 65535 (or 0), found {chosen}."
        raise LocalError(Code.CONFIG_INVALID, detail)


def _write_all(root: Path, name: str, host: str, ports: Ports, now_ms: int) -> Authority:
    authority = Authority.create(name, now_ms)
    publisher = os.urandom(KEY_BYTES)
    files: dict[str, bytes] = {
        "authority/authority.pem": authority.pem,
        "authority/authority.key": authority.key_pem,
        "aggregator/ticket.key": ed25519_pem(os.urandom(KEY_BYTES)),
        "publisher/publisher.key": ed25519_pem(publisher),
        "operator/authority.pem": authority.pem,
        "operator/operator.toml": _toml({"fleet": name, "endpoints": _endpoints(host, ports)}),
        "aggregator.toml": _configuration(name, host, ports, ed25519_public(publisher)),
    }
    for folder, role, identifier in (
        ("aggregator", identity.Role.AGGREGATOR, "main"),
        ("broker", identity.Role.BROKER, "main"),
        ("operator", identity.Role.OPERATOR, "main"),
    ):
        key = identity.new_key()
        csr = identity.make_csr(key)
        issued = authority.issue(identity.Name(name, role, identifier), csr, now_ms, SERVER_DAYS)
        files |= {f"{folder}/cert.pem": issued.chain_pem, f"{folder}/cert.key": identity.key_pem(key)}
    for path, content in files.items():
        write_private(root / path, content)
    (root / "state").mkdir(mode=0o700)
    return authority


def _endpoints(host: str, ports: Ports) -> list[str]:
    return [f"{host}:{ports.fleet}"] if ports.fleet else []


def _configuration(name: str, host: str, ports: Ports, publisher: bytes) -> bytes:
    loopback = host in {"127.0.0.1", "localhost"}
    values = {
        "fleet": {"name": name, "publisher_keys": [publisher.hex()]},
        "listen": {
            "address": "127.0.0.1" if loopback else ANY,
            "hosts": [host],
            "fleet_port": ports.fleet,
            "enrollment_port": ports.enrollment,
        },
        "broker": {"kind": "child", "port": ports.mqtt},
    }
    return HEAD + _toml(values)


def _toml(values: Mapping[str, object]) -> bytes:
    return tomli_w.dumps(values).encode()


def write_private(path: Path, content: bytes) -> None:
    """Writes a file of mode 0600 and its directory (0700) so that both survive a power cut.

    An existing file is replaced in one step. What root writes belongs to whom the directory belongs to.
    """
    owner.make(path.parent)
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(owner.create(draft), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
