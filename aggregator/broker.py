"""mosquitto as a child process with generated configuration: the fleet's MQTT broker on one machine.

It listens with mutual TLS only, takes user name and client id from the certificate, lets a device
read its own wake-ups and write its own status, keeps queues over restarts, and is restarted if it
dies. It ends with us, even when we are killed. When we are root, the broker is not: it runs as
user mosquitto, and since that user cannot look into the fleet's directory, its files are then
under mosquitto's own state directory. Called by `main.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from fedless.protocol.errors import Code, LocalError

USER = "mosquitto"
ROOT_HOME = Path("/var/lib/mosquitto")
START_S = 10.0
PORT_FREE_S = 3.0
STOP_S = 5.0
BACK_OFF_S = (0.2, 1.0, 5.0, 30.0)
PACKET_BYTES_MAX = 16 * 1024
_log = structlog.get_logger("broker")


@dataclass(frozen=True)
class BrokerFiles:
    """What the broker needs of the fleet: the authority (PEM), and the files of its own chain and key."""

    authority: bytes
    chain: Path
    key: Path


class Broker:
    """The child process and its files. `port` 0: any free one, and nothing is kept after `stop`."""

    def __init__(
        self,
        fleet: str,
        state: Path,
        files: BrokerFiles,
        *,
        address: str,
        port: int,
        max_queued: int,
        program: str = "mosquitto",
    ) -> None:
        self._fleet = fleet
        self._files = files
        self._address = address.strip("[]")
        self._wanted_port = port
        self._max_queued = max_queued
        self._program = program
        self._account = _account()
        self._home = _home(state, self._account)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=8)
        self.port = 0

    async def start(self, revocation_list: bytes) -> int:
        """Starts mosquitto and waits until it listens; the port.

        Raises `LocalError` NOT_INSTALLED, PORT_IN_USE or BROKER_UNREACHABLE.
        """
        program = shutil.which(self._program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            fix = 'Install it (`apt install mosquitto`), or set broker.kind = "external".'
            raise LocalError(Code.NOT_INSTALLED, f"{self._program}, the MQTT broker, was not found.", fix=fix)
        self._program = program
        self.port = await _free_port(self._address, self._wanted_port)
        self._write(revocation_list)
        await self._spawn()
        self._watch = asyncio.create_task(self._keep_alive())
        return self.port

    async def follow(self, authority: bytes, revocation_list: bytes) -> None:
        """Start the broker again if it is to believe others, or has another certificate: mosquitto reads both once.

        Queues and sessions are on disk, its port stays; clients are away for a moment. Raises as `start`.
        """
        certificate = self._home / "cert.pem"
        if authority == self._files.authority and certificate.read_bytes() == self._files.chain.read_bytes():
            return
        self._files = replace(self._files, authority=authority)
        await self._end()
        self._write(revocation_list)
        try:
            await self._spawn()
        finally:  # also if it does not come up: then it is tried again
            self._watch = asyncio.create_task(self._keep_alive())

    def revoke(self, revocation_list: bytes) -> None:
        """Gives the broker a new CRL: revoked devices cannot connect again, all others stay connected."""
        self._put("crl.pem", revocation_list)
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Ends the broker; its queues stay on disk unless the port was any free one."""
        await self._end()
        if self._wanted_port == 0:
            shutil.rmtree(self._home, ignore_errors=True)

    async def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._leash(), self._program, "-c", str(self._home / "mosquitto.conf"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for us: the broker ends last
        )  # fmt: skip
        listening = asyncio.create_task(self._listening())
        gone = asyncio.create_task(self._read_log(self._process))
        done, _ = await asyncio.wait({listening, gone}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if listening not in done:
            listening.cancel()
            detail = f"mosquitto did not begin to listen on port {self.port}: {' '.join(self._said)[:400]}"
            raise LocalError(Code.BROKER_UNREACHABLE, detail)
        _log.info("broker_listening", port=self.port, pid=self._process.pid)

    def _leash(self) -> list[str]:
        """A prefix that ends the child with its parent and, for root, makes it another user's."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            return []
        user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if self._account else []
        return [setpriv, *user, "--pdeathsig", "TERM", "--"]

    async def _keep_alive(self) -> None:
        attempt = 0
        while self._process is not None:
            started = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if asyncio.get_running_loop().time() - started > BACK_OFF_S[-1]:
                attempt = 0
            pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
            attempt += 1
            _log.error("broker_died", exit_code=code, said=list(self._said)[-2:], restart_in_s=pause)
            await asyncio.sleep(pause)
            with suppress(LocalError):
                await self._spawn()

    async def _listening(self) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address, self._address)  # noqa: S104 - compared, not bound
        while True:
            try:
                _, writer = await asyncio.open_connection(host, self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        while line := await process.stderr.readline():
            text = line.decode("utf-8", "replace").strip().split(": ", 1)[-1]
            self._said.append(text)
            _log.debug("mosquitto", line=text)

    def _write(self, revocation_list: bytes) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._account:
            os.chown(self._home, self._account.pw_uid, self._account.pw_gid)
        self._put("authority.pem", self._files.authority)
        self._put("cert.pem", self._files.chain.read_bytes())
        self._put("cert.key", self._files.key.read_bytes())
        self._put("crl.pem", revocation_list)
        self._put("acl", access_list(self._fleet).encode())
        self._put("mosquitto.conf", self._configuration().encode())

    def _put(self, name: str, content: bytes) -> None:
        draft = self._home / f".{name}.new"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            if self._account:
                os.fchown(file.fileno(), self._account.pw_uid, self._account.pw_gid)
            file.write(content)
        draft.rename(self._home / name)

    def _configuration(self) -> str:
        home = self._home
        return f"""\
# Generated at every start of the aggregator; changes are lost.
per_listener_settings false
allow_anonymous false
listener {self.port} {self._address}
protocol mqtt
{mutual_tls(home)}acl_file {home}/acl
persistence true
persistence_location {home}/
autosave_interval 60
persistent_client_expiration 8d
max_queued_messages {self._max_queued}
max_packet_size {PACKET_BYTES_MAX}
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
"""


def mutual_tls(home: Path) -> str:
    """What mosquitto asks of whoever connects to a listener: who a client is, is what its certificate says."""
    return f"""\
tls_version tlsv1.3
cafile {home}/authority.pem
certfile {home}/cert.pem
keyfile {home}/cert.key
# Read again at a SIGHUP (`systemctl reload`): revoked clients cannot connect any more.
crlfile {home}/crl.pem
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""


def access_list(fleet: str) -> str:
    """mosquitto's ACL: the aggregator everything of the fleet, a device its wake-ups and its status."""
    root = f"fedless/v1/{fleet}"
    return f"""\
pattern read {root}/wake/%u
pattern read {root}/announce
pattern write {root}/status/%u
user @aggregator
topic readwrite {root}/#
"""


def _account() -> pwd.struct_passwd | None:
    """The account that the broker runs under when we are root; None: our own."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(USER)
    return None


def _home(state: Path, account: pwd.struct_passwd | None) -> Path:
    if account is None:
        return state / "broker"
    return ROOT_HOME / f"fedless-{hashlib.sha256(bytes(state.resolve())).hexdigest()[:16]}"


async def _free_port(address: str, wanted: int) -> int:
    """The wanted port once it is free (a broker of before may still be ending), or any free one for 0."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(int(PORT_FREE_S / 0.1)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, wanted))
            except OSError as error:
                reason = error.strerror
            else:
                port: int = probe.getsockname()[1]
                return port
        await asyncio.sleep(0.1)
    detail = f"The broker cannot listen on {address}:{wanted}: {reason}."
    raise LocalError(Code.PORT_IN_USE, detail, fix="Change broker.port.")
