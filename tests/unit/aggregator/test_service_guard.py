"""How errors leave the service: a peer's fault with details, ours without."""

from __future__ import annotations

import pytest

from aggregator.service_guard import _refusal
from aggregator.wake import is_online
from fedless.protocol.errors import Code, LocalError, PeerError


def test_peers_fault_is_told_as_it_is() -> None:
    error = PeerError(Code.ROUND_CLOSED, "It closed.", fix="Wait.", retry_after_ms=5)
    assert _refusal(error, "CheckIn", tell=False) is error


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), KeyError("secret"), OSError(5, "secret")])
def test_what_went_wrong_inside_is_not_told(error: Exception) -> None:
    for tell in (False, True):
        refusal = _refusal(error, "CheckIn", tell=tell)
        assert refusal.code is Code.INTERNAL
        assert "secret" not in str(refusal)


def test_own_trouble_is_told_to_operators_only() -> None:
    error = LocalError(Code.STATE_CORRUPT, "The file /state/x is damaged.")
    assert _refusal(error, "CheckIn", tell=False).code is Code.INTERNAL
    told = _refusal(error, "StartRun", tell=True)
    assert (told.code, told.detail) == (Code.STATE_CORRUPT, error.detail)


def test_full_disk_asks_the_client_to_come_again() -> None:
    refusal = _refusal(LocalError(Code.DISK_FULL, "/state is full."), "PutReport", tell=False)
    assert refusal.code is Code.DISK_FULL
    assert refusal.retry_after_ms
    assert "/state" not in str(refusal)


def test_transfer_that_stands_still_may_be_tried_again() -> None:
    refusal = _refusal(TimeoutError(), "PutReport", tell=False)
    assert refusal.code is Code.BUSY
    assert refusal.retry_after_ms


@pytest.mark.parametrize(
    ("payload", "online"),
    [
        (b'{"online":true}', True),
        (b'{"online":false}', False),
        (b'{"online":1}', False),
        (b"", False),
        (b"online", False),
        (b"[true]", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
)
def test_presence_is_believed_only_as_agreed(payload: bytes, online: bool) -> None:
    assert is_online(payload) is online
