"""The aggregator's calls to the helper: gRPC over mTLS. The only gRPC client of this room.

The helper's certificate lies here as a file, so the connection trusts that one certificate and no other: who answers
is the fleet's helper, and no other server of the fleet. Each question opens a connection of its own, with the
aggregator's certificate as it is then. A refusal comes back as the `PeerError` that the helper raised; a connection
that cannot be made, breaks or stands still is `PeerError(HELPER_UNREACHABLE)`.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc
import grpc.aio

from aggregator.authority import der_to_pem
from aggregator.config import HelperSettings
from fedless.protocol import identity
from fedless.protocol.crypto import KEY_BYTES
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import MESSAGE_BYTES_MAX
from fedless.protocol.prg import Words
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, MaskSum
from fedless.protocol.secagg.messages import Member
from fedless.protocol.wire import error_from_bytes
from fedless.protocol.wire import helper as wire
from fedless.v1 import helper_pb2, helper_pb2_grpc

ERROR_TRAILER = "fedless-error-bin"
STALL_S = 120.0
"""The helper may compute for this long before its first chunk; a stream that stands still longer is given up."""
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"
FIX = "Put the helper's cert.pem and hpke.pub there (docs/helper.md)."
Answer = tuple[MaskSum, Words] | RefusedReports


@dataclass(frozen=True)
class SecondParty:
    """The helper as this fleet knows it: where it is, its certificate (leaf, DER), its HPKE key, who signs its sums."""

    address: str
    certificate: bytes
    key: bytes
    member: Member


def read_helper_key(settings: HelperSettings) -> bytes:
    """The helper's HPKE public key, 32 bytes; raises `LocalError` STATE_MISSING or STATE_CORRUPT."""
    return read_key(settings.directory / "hpke.pub")


def read_key(path: Path) -> bytes:
    """A public key of the helper, 32 bytes in hex; raises as `read_helper_key`."""
    try:
        key = bytes.fromhex(_read(path))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise LocalError(Code.STATE_CORRUPT, f"Expected {KEY_BYTES} bytes in hex in {path}.", fix=FIX)
    return key


def read_second_party(
    settings: HelperSettings, authority: identity.Roots, fleet: str, now_ms: int
) -> SecondParty:
    """The helper of the settings. Raises `LocalError`: a missing file, or a certificate that is not a helper's."""
    path = settings.directory / "cert.pem"
    leaf = _read(path).partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE
    try:
        der = ssl.PEM_cert_to_DER_cert(leaf.strip())
        name, public_key = identity.verify_chain([der], authority, fleet, now_ms)
    except (ValueError, PeerError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path}: {error}", fix=FIX) from error
    if name.role is not identity.Role.HELPER:
        detail = f"{path}: expected a certificate of role helper, found {name.role.value}."
        raise LocalError(Code.CONFIG_INVALID, detail, fix=FIX)
    member = Member(name.id, is_device=False, public_key=public_key)
    return SecondParty(settings.address, der, read_helper_key(settings), member)


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(Code.STATE_MISSING, f"{path} cannot be read: {error}.", fix=FIX) from error


class HelperLink:
    """Asks the helper. `directory` holds the aggregator's cert.pem and cert.key."""

    def __init__(self, party: SecondParty, directory: Path, fleet: str) -> None:
        self.party = party
        self._directory = directory
        self._server_name = identity.server_name(fleet)

    def follow(self, party: SecondParty) -> None:
        """The helper has another certificate or key from now on."""
        self.party = party

    async def close(self, request: CloseRequest, timeout_ms: int) -> Answer:
        """The sum of a set's masks, or the reports that keep it from being closed; nothing of it is checked.

        Raises `PeerError`: what the helper refused, HELPER_UNREACHABLE, or FOREIGN_CERTIFICATE when another server
        answers at its address.
        """
        try:
            async with grpc.aio.secure_channel(
                self.party.address, self._credentials(), self._options()
            ) as channel:
                return await _ask(channel, request, timeout_ms)
        except grpc.aio.AioRpcError as error:
            _refused(error)

    def _credentials(self) -> grpc.ChannelCredentials:
        try:
            key, chain = (
                (self._directory / "cert.key").read_bytes(),
                (self._directory / "cert.pem").read_bytes(),
            )
        except OSError as error:
            raise LocalError(Code.STATE_MISSING, f"{error}.", fix="Restore it from a back-up.") from error
        return grpc.ssl_channel_credentials(der_to_pem(self.party.certificate), key, chain)

    def _options(self) -> list[tuple[str, str | int]]:
        return [
            ("grpc.ssl_target_name_override", self._server_name),
            ("grpc.default_authority", self._server_name),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.enable_http_proxy", 0),
        ]


async def _ask(channel: grpc.aio.Channel, request: CloseRequest, timeout_ms: int) -> Answer:
    call = helper_pb2_grpc.HelperStub(channel).Close(
        wire.close_request_to_pb(request), timeout=timeout_ms / 1000
    )
    chunks: list[helper_pb2.MaskSumChunk] = []
    left = request.open.encoding.report_bytes
    stream = aiter(call)
    try:
        while True:
            async with asyncio.timeout(STALL_S):
                chunk = await anext(stream, None)
            if chunk is None:
                break
            chunks.append(chunk)
            left -= len(chunk.data)
            if left < 0:
                raise PeerError(Code.WRONG_LENGTH, "The helper sent more words than the round has.")
    except TimeoutError as error:
        raise PeerError(Code.HELPER_UNREACHABLE, f"It was silent for {STALL_S:.0f} s.") from error
    finally:
        call.cancel()
    return await asyncio.to_thread(wire.mask_sum_from_pb, request.open, chunks)


def _refused(error: grpc.aio.AioRpcError) -> NoReturn:
    """gRPC's error as ours."""
    for name, value in error.trailing_metadata() or ():
        if name == ERROR_TRAILER:
            raise error_from_bytes(value if isinstance(value, bytes) else value.encode()) from error
    status, details = error.code(), (error.details() or "")[:300]
    if "CERTIFICATE_VERIFY_FAILED" in details:
        detail = "The server at the helper's address does not hold the certificate that lies here, or it has ended."
        raise PeerError(Code.FOREIGN_CERTIFICATE, detail, fix=FIX) from error
    raise PeerError(Code.HELPER_UNREACHABLE, f"{status.name}: {details}.", fix="Is it running?") from error
