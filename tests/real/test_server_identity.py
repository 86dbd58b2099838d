"""The gRPC ports show a new certificate, and believe a new authority, with the next handshake; each of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from aggregator.authorities import Authorities, begin, issue, retire
from aggregator.founding import Ports, found_fleet, renew_server
from aggregator.service import ServerIdentity, bind, new_server
from fedless.protocol import identity
from tests.running_fleet import Credentials, now_ms

pytestmark = pytest.mark.real
WAIT_S = 15.0


def shown(port: int, authority_pem: bytes, who: Path | None = None) -> bytes:
    """The certificate (DER) that a port shows to somebody who believes these; b"" if one of them refuses the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority_pem.decode())
    context.set_alpn_protocols(["h2"])
    if who is not None:
        context.load_cert_chain(who / "cert.pem", who / "cert.key")
    try:
        with (
            socket.create_connection(("127.0.0.1", port), WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname=identity.server_name("home")) as channel,
        ):
            found = channel.getpeercert(binary_form=True) or b""
            return found if channel.recv(1) else b""  # TLS 1.3: only now the client knows that it was let in
    except OSError:
        return b""


def new_operator(folder: Path, authorities: Authorities) -> Path:
    name = identity.Name("home", identity.Role.OPERATOR, "anna")
    made = Credentials.issued(authorities.issuing, name, now_ms())
    folder.mkdir()
    (folder / "cert.pem").write_bytes(made.chain)
    (folder / "cert.key").write_bytes(made.key)
    return folder


async def test_every_port_follows_a_roll_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    found_fleet(home, "home", "127.0.0.1", Ports(0, 0, 0), now_ms())
    folder, own = home / "authority", home / "aggregator"
    old = Authorities.load(folder, "home")
    server_identity = ServerIdentity(own, old.pem)
    server = new_server(8)
    closed = bind(server, "127.0.0.1", 0, server_identity.credentials(client_certificates=True))
    opened = bind(server, "127.0.0.1", 0, server_identity.credentials(client_certificates=False))
    await server.start()
    try:
        operator = home / "operator"
        first = await asyncio.to_thread(shown, opened, old.pem)
        assert first
        assert await asyncio.to_thread(shown, closed, old.pem, operator) == first

        begin(folder, "home", now_ms())
        both = issue(folder, "home")
        newcomer = new_operator(tmp_path / "anna", both)
        assert not await asyncio.to_thread(shown, closed, both.pem, newcomer)
        server_identity.follow(both.pem)
        assert await asyncio.to_thread(shown, closed, both.pem, newcomer) == first
        assert await asyncio.to_thread(shown, closed, both.pem, operator) == first

        new = retire(folder, "home", now_ms())
        assert renew_server(own, new.serving, identity.Role.AGGREGATOR, now_ms())
        server_identity.follow(new.pem)
        second = await asyncio.to_thread(shown, closed, new.pem, newcomer)
        assert second not in {first, b""}
        assert await asyncio.to_thread(shown, opened, new.pem) == second, "also the second port to be asked"
        assert not await asyncio.to_thread(shown, closed, new.pem, operator)
    finally:
        await server.stop(None)
