"""*Pure.* Signed tickets (wake-ups). Lists of the keys that may sign them: `succession`.

The aggregator signs with its Ed25519 ticket key; the participant verifies the exact bytes that
came, then judges what they say. Bundles and their manifests are in `bundle_format.py` and
`manifest.py`. Time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedless.protocol.crypto import ed25519_public, ed25519_sign, ed25519_verify, key_id
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import PROTOCOL_VERSION, SignedTicket, SigningKey, Ticket

TICKET_LABEL = b"fedless-ticket\0"


def signing_key(private_raw: bytes) -> SigningKey:
    """The public half of an Ed25519 key (32 raw bytes) with its id."""
    public = ed25519_public(private_raw)
    return SigningKey(key_id(public), public)


def sign_ticket(ticket: bytes, private_raw: bytes) -> SignedTicket:
    """Aggregator: signs a ticket's bytes, as `wire.ticket_to_bytes` made them."""
    signature = ed25519_sign(private_raw, TICKET_LABEL + ticket)
    return SignedTicket(ticket, signing_key(private_raw).key_id, signature)


def verify_ticket(signed: SignedTicket, keys: Iterable[SigningKey]) -> bytes:
    """Client: the ticket's bytes if one of its trusted keys signed exactly these.

    Raises `PeerError` TICKET_UNKNOWN_KEY, or TICKET_FORGED for a signature that does not fit.
    """
    trusted: Mapping[bytes, SigningKey] = {key.key_id: key for key in keys}
    key = trusted.get(signed.key_id)
    if not signed.signature:
        raise PeerError(Code.TICKET_FORGED, "It carries no signature.")
    if key is None:
        raise PeerError(Code.TICKET_UNKNOWN_KEY, f"Its key id is {signed.key_id.hex()[:16] or 'empty'}.")
    if not ed25519_verify(key.public_key, signed.signature, TICKET_LABEL + signed.ticket):
        raise PeerError(Code.TICKET_FORGED)
    return signed.ticket


def judge_ticket(ticket: Ticket, fleet: str, client_id: str, now_ms: int) -> None:
    """Client: whether a verified ticket is for it and still good.

    Raises `PeerError` TICKET_FOREIGN, TICKET_EXPIRED, or TICKET_MALFORMED for another version.
    """
    if ticket.version != PROTOCOL_VERSION:
        detail = f"Expected ticket version {PROTOCOL_VERSION}, found {ticket.version}."
        raise PeerError(Code.TICKET_MALFORMED, detail, fix="Update fedless on this device.")
    if ticket.fleet != fleet:
        raise PeerError(Code.TICKET_FOREIGN, f"It is for fleet {ticket.fleet!r}, not {fleet!r}.")
    if ticket.client_id != client_id:
        raise PeerError(Code.TICKET_FOREIGN, f"It is for client {ticket.client_id!r}, not {client_id!r}.")
    if ticket.not_after_ms <= now_ms:
        late_s = (now_ms - ticket.not_after_ms) // 1000
        raise PeerError(Code.TICKET_EXPIRED, f"It ended {late_s} s ago by this clock.")
