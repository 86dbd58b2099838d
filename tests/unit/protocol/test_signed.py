"""Tickets: what a participant accepts, and each attack that it refuses."""

from dataclasses import replace

import pytest

from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind, SignedTicket, Ticket
from fedless.protocol.signed import (
    judge_ticket,
    sign_ticket,
    signing_key,
    verify_ticket,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
TICKET = Ticket(
    fleet="acme",
    client_id="pi-1",
    task_digest=b"t" * 32,
    run_id="run-1",
    round_id=7,
    kind=Kind.TRAIN,
    bundle_digest=b"b" * 32,
    model_version=3,
    model_digest=b"m" * 32,
    endpoints=("fl.example.org:8443",),
    not_after_ms=1_000_000,
    nonce=b"n" * 16,
)


def signed(key: bytes = KEY) -> SignedTicket:
    return sign_ticket(wire.ticket_to_bytes(TICKET), key)


def code_of(ticket: SignedTicket) -> Code:
    with pytest.raises(PeerError) as error:
        verify_ticket(ticket, [signing_key(KEY)])
    return error.value.code


def test_a_good_ticket_comes_through_unchanged() -> None:
    travelled = wire.signed_ticket_from_bytes(wire.signed_ticket_to_bytes(signed()))
    ticket = wire.ticket_from_bytes(verify_ticket(travelled, [signing_key(OTHER), signing_key(KEY)]))
    assert ticket == TICKET
    judge_ticket(ticket, "acme", "pi-1", TICKET.not_after_ms - 1)


def test_forged_ticket_is_refused() -> None:
    changed = wire.ticket_to_bytes(replace(TICKET, client_id="pi-2"))
    assert code_of(replace(signed(), ticket=changed)) is Code.TICKET_FORGED
    assert code_of(replace(signed(OTHER), key_id=signing_key(KEY).key_id)) is Code.TICKET_FORGED


def test_unsigned_ticket_is_refused() -> None:
    assert code_of(replace(signed(), signature=b"")) is Code.TICKET_FORGED
    assert code_of(replace(signed(), signature=b"", key_id=b"")) is Code.TICKET_FORGED


def test_ticket_of_an_unknown_key_is_refused() -> None:
    assert code_of(signed(OTHER)) is Code.TICKET_UNKNOWN_KEY


@pytest.mark.parametrize(
    ("fleet", "client", "now", "code"),
    [
        ("acme", "pi-2", 0, Code.TICKET_FOREIGN),
        ("other", "pi-1", 0, Code.TICKET_FOREIGN),
        ("acme", "pi-1", 1_000_000, Code.TICKET_EXPIRED),
        ("acme", "pi-1", 2_000_000, Code.TICKET_EXPIRED),
    ],
)
def test_foreign_or_expired_ticket_is_refused(fleet: str, client: str, now: int, code: Code) -> None:
    with pytest.raises(PeerError) as error:
        judge_ticket(TICKET, fleet, client, now)
    assert error.value.code is code


def test_ticket_of_another_version_is_refused() -> None:
    with pytest.raises(PeerError, match="version 1, found 2"):
        judge_ticket(replace(TICKET, version=2), "acme", "pi-1", 0)
