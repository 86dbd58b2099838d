"""The helper's composition: `found` makes its keys, `serve` runs it until it is told to stop.

Called by `fedless helper init` and `fedless helper serve`. The real clock and the operating system's randomness
enter here and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import structlog

from fedless.helper.closing import Helper, Trust
from fedless.helper.config import Settings, load
from fedless.helper.opening import open_memory
from fedless.helper.rotation import own_keys, read_file
from fedless.helper.service import credentials, new_server
from fedless.protocol import identity
from fedless.protocol.crypto import (
    KEY_BYTES,
    ed25519_pem,
    ed25519_public,
    p256_from_pem,
    sha256,
    x25519_public,
)
from fedless.protocol.errors import Code, LocalError

ENDPOINT_FILE = "endpoint.json"
STOP_TIMEOUT_S = 5.0
_log = structlog.get_logger("helper")


def found(directory: Path, fleet: str, authority_pem: bytes) -> bytes:
    """Make a new helper's keys, its certificate request and its settings; the SHA-256 of its HPKE key.

    The fleet's operator has the request (`request.der`) signed and gives back `cert.pem`; the digest is what
    devices pin. Raises `LocalError(STATE_EXISTS)` if there is something in `directory`.
    """
    if directory.exists() and any(directory.iterdir()):
        raise LocalError(Code.STATE_EXISTS, f"{directory} is not empty.", fix="Choose another directory.")
    key, hpke, signing = identity.new_key(), os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    files = {
        "authority.pem": authority_pem,
        "cert.key": identity.key_pem(key),
        "request.der": identity.make_csr(key),
        "hpke.key": hpke.hex().encode() + b"\n",
        "hpke.pub": x25519_public(hpke).hex().encode() + b"\n",
        "signing.key": ed25519_pem(signing),
        "signing.pub": ed25519_public(signing).hex().encode() + b"\n",
        "helper.toml": f'[fleet]\nname = "{fleet}"\n'.encode(),
    }
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return sha256(x25519_public(hpke))


def serve(configuration: Path) -> None:
    """Run the helper until SIGTERM or SIGINT. Raises `LocalError` when it cannot start."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_serve(load(configuration)))


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with running(settings) as port:
        _log.info("helper_ready", fleet=settings.fleet.name, port=port)
        await stopping.wait()
    _log.info("helper_stopped")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[int]:
    """A running helper; its port, which `state/endpoint.json` holds too."""
    authority_pem = read_file(settings.fleet.authority)
    key_pem, certificate_pem = read_file(settings.keys.key), read_file(settings.keys.certificate)
    trust = Trust(settings.fleet.name, identity.certificates(authority_pem), settings.fleet.denied)
    settings.state.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(open_memory(settings.state.directory, settings.state.url)) as memory:
        helper = Helper(
            trust=trust,
            demands=settings.rules.demands,
            memory=memory,
            clock=lambda: time.time_ns() // 1_000_000,
            randomness=os.urandom,
            key=p256_from_pem(key_pem),
            hpke=lambda: tuple(
                filter(None, own_keys(settings.keys))
            ),  # read for each set: no restart for a new one
        )
        helper.hpke()
        server = new_server(helper)
        address = f"{settings.listen.address}:{settings.listen.port}"
        try:
            port = server.add_secure_port(address, credentials(key_pem, certificate_pem, authority_pem))
        except RuntimeError as error:
            fix = "Stop what listens there, or change listen.port."
            raise LocalError(Code.PORT_IN_USE, f"Cannot listen on {address}.", fix=fix) from error
        await server.start()
        (settings.state.directory / ENDPOINT_FILE).write_text(json.dumps({"port": port}) + "\n")
        try:
            yield port
        finally:
            await server.stop(STOP_TIMEOUT_S)
