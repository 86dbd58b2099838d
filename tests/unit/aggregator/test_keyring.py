"""Signing keys that follow one another: what clients are told, who signs, and crashes between."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.founding import write_private
from aggregator.keyring import Keyring
from fedless.protocol.crypto import ed25519_pem, ed25519_public, key_id
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.listing import LISTS_KEPT
from fedless.protocol.succession import follow
from fedless.protocol.trust import TrustKind

NOW_MS = 1_790_000_000_000


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    write_private(tmp_path / "ticket.key", ed25519_pem(os.urandom(32)))
    return Keyring("home", TrustKind.TICKET, tmp_path / "ticket.key", tmp_path / "ticket-lists.json")


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(LocalError) as caught:
        call()
    return caught.value.code


def test_old_key_signs_until_the_end(ring: Keyring) -> None:
    old = ring.secret()
    assert ring.members() == (ed25519_public(old),)
    ring.begin(NOW_MS)
    assert ring.secret() == old
    assert ring.members()[0] == ed25519_public(old)
    assert ring.next_id() == key_id(ring.members()[1]).hex()
    ring.end(NOW_MS)
    assert ring.members() == (ed25519_public(ring.secret()),)
    assert ring.secret() != old
    assert not ring.rotating
    assert not ring.following.exists()


def test_client_that_was_away_for_two_rotations_follows(ring: Keyring) -> None:
    at_enrollment = ring.members()
    for _ in range(2):
        ring.begin(NOW_MS)
        ring.end(NOW_MS)
    members, number = follow("home", TrustKind.TICKET, at_enrollment, 0, ring.read())
    assert members == (ed25519_public(ring.secret()),)
    assert number == ring.read()[-1].number
    assert [each.number for each in ring.read()] == sorted({each.number for each in ring.read()})


def test_steps_out_of_order_are_refused(ring: Keyring) -> None:
    assert code_of(lambda: ring.end(NOW_MS)) is Code.WRONG_STATE
    ring.begin(NOW_MS)
    assert code_of(lambda: ring.begin(NOW_MS)) is Code.WRONG_STATE


def test_number_is_above_whatever_a_lost_list_had(ring: Keyring) -> None:
    """A back-up from before a rotation knows nothing of its numbers; time does."""
    ring.begin(NOW_MS)
    ring.end(NOW_MS)
    lost = ring.read()[-1].number
    ring.lists.unlink()
    ring.begin(NOW_MS + 60_000)
    assert ring.read()[-1].number > lost


def test_crash_before_the_list_leaves_the_rotation_unbegun(ring: Keyring) -> None:
    write_private(ring.following, ed25519_pem(os.urandom(32)))  # all that `begin` does before
    assert not ring.rotating
    ring.begin(NOW_MS)
    assert ring.rotating


def test_crash_after_the_last_list_is_completed(ring: Keyring) -> None:
    ring.begin(NOW_MS)
    old, new = ring.key.read_bytes(), ring.following.read_bytes()
    ring.end(NOW_MS)
    write_private(ring.key, old)
    write_private(ring.following, new)
    assert ed25519_pem(ring.secret()) == new
    assert not ring.following.exists()


def test_other_publishers_stay(tmp_path: Path) -> None:
    own, other = os.urandom(32), os.urandom(32)
    write_private(tmp_path / "publisher.key", ed25519_pem(own))
    first = (ed25519_public(other), ed25519_public(own))
    ring = Keyring("home", TrustKind.PUBLISHER, tmp_path / "publisher.key", tmp_path / "lists.json", first)
    ring.begin(NOW_MS)
    ring.end(NOW_MS)
    assert ring.members() == (ed25519_public(other), ed25519_public(ring.secret()))
    assert follow("home", TrustKind.PUBLISHER, first, 0, ring.read())[0] == ring.members()


def test_key_that_nobody_trusts_cannot_hand_on(tmp_path: Path) -> None:
    write_private(tmp_path / "publisher.key", ed25519_pem(os.urandom(32)))
    first = (ed25519_public(os.urandom(32)),)
    ring = Keyring("home", TrustKind.PUBLISHER, tmp_path / "publisher.key", tmp_path / "lists.json", first)
    assert code_of(lambda: ring.begin(NOW_MS)) is Code.CONFIG_INVALID
    assert not ring.following.exists()


def test_rotation_whose_key_was_lost_begins_anew(ring: Keyring) -> None:
    ring.begin(NOW_MS)
    lost = ring.members()[1]
    ring.following.unlink()  # restored from a back-up without keys
    assert not ring.rotating
    ring.begin(NOW_MS)
    assert lost not in ring.members()


def test_files_are_private_bounded_and_named_when_damaged(ring: Keyring) -> None:
    for _ in range(LISTS_KEPT):
        ring.begin(NOW_MS)
        ring.end(NOW_MS)
    assert len(ring.read()) == LISTS_KEPT
    assert stat.S_IMODE(ring.lists.stat().st_mode) == 0o600
    for text in ("{", "[1]", '[{"kind": "weather"}]', '{"a": 1}'):
        ring.lists.write_text(text)
        assert code_of(ring.read) is Code.STATE_CORRUPT
    ring.lists.unlink()
    ring.key.unlink()
    assert code_of(ring.secret) is Code.STATE_MISSING
