"""*Pure.* The aggregator's side of a key epoch's set-up: M0 in, M1 out, M2 in, M3 out.

`ServerEpoch` is what the store keeps, one row; the members' M2 (megabytes in a large cohort) are rows of
their own, which the driver hands to `inbox_for`. Signed messages are stored before they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from fedless.protocol.crypto import NONCE_BYTES, TAG_BYTES, Prg, check_point, sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg import codec, epochs
from fedless.protocol.secagg.epochs import COHORT_MAX, Trust
from fedless.protocol.secagg.messages import (
    Box,
    EpochKeys,
    EpochShares,
    Inbox,
    Roster,
    Sign,
    VerifyMember,
    active_signed,
)
from fedless.protocol.secagg.setup import check_epoch_keys
from fedless.protocol.secagg.shamir import SHARE_BYTES


@dataclass(frozen=True)
class Received:
    """Whose M2 arrived, and its SHA-256."""

    index: int
    sha256: bytes


@dataclass(frozen=True)
class ServerEpoch:
    """One key epoch at the aggregator.

    `offers`: M0 by client, until the roster is made. `received`: whose M2 arrived. `members`: E, once active,
    with the Ed25519 signature that goes into every M3. `next_slot`: the slot of the next round.
    """

    epoch: int
    slots: int
    trust: Trust
    offers: tuple[EpochKeys, ...] = ()
    roster: Roster | None = None
    received: tuple[Received, ...] = ()
    members: tuple[int, ...] = ()
    active_signature: bytes = b""
    next_slot: int = 0
    abandoned_in_a_row: int = 0

    @property
    def sealed_roster(self) -> Roster:
        """The roster. Raises `PeerError(WRONG_STATE)` before there is one."""
        if self.roster is None:
            raise PeerError(Code.WRONG_STATE, "The key epoch has no roster yet.")
        return self.roster

    @property
    def active_hash(self) -> bytes:
        """H("active", rh, E)."""
        return sha256(active_signed(self.sealed_roster.hash, self.members))

    def entry(self, index: int) -> EpochKeys:
        """The roster entry of a member of E. Raises `PeerError(NOT_IN_COHORT)`."""
        if index not in self.members:
            raise PeerError(Code.NOT_IN_COHORT, f"Member {index} is not active in key epoch {self.epoch}.")
        return self.sealed_roster.entries[index - 1]

    @property
    def prg(self) -> Prg:
        """AES if no member measured it slower than ChaCha20 (a Pi 4 has no AES instructions)."""
        entries = self.sealed_roster.entries
        return Prg.AES if all(e.aes_mb_per_s >= e.chacha_mb_per_s for e in entries) else Prg.CHACHA

    def is_over(self, revoked: int = 0) -> bool:
        """Whether no further slot is opened; `revoked`: members of E that may no longer take part."""
        return epochs.is_over(
            next_slot=self.next_slot,
            slots=self.slots,
            present=len(self.members) - revoked,
            t=self.sealed_roster.threshold,
            abandoned_in_a_row=self.abandoned_in_a_row,
        )


def accept_keys(
    epoch: ServerEpoch, keys: EpochKeys, *, at_ms: int, verify_member: VerifyMember
) -> ServerEpoch:
    """Aggregator: take M0. A byte-identical repeat changes nothing.

    Raises `PeerError`: `CONFLICTING_REPEAT` (other keys for this epoch), `WRONG_STATE` (the roster is made),
    `EPOCH_STALE`, `BAD_ROSTER` (sizes, or keys that another client has too), `BAD_POINT`, `BAD_SIGNATURE`, or
    what `verify_member` raises.
    """
    for offer in epoch.offers:
        if offer.client_id == keys.client_id:
            if offer != keys:
                raise PeerError(Code.CONFLICTING_REPEAT, f"Other keys for key epoch {epoch.epoch} are here.")
            return epoch
    if epoch.roster is not None:
        raise PeerError(Code.WRONG_STATE, "The roster is made.", fix="Wait for the next key epoch.")
    if keys.epoch != epoch.epoch or len(keys.mask_keys) != epoch.slots:
        raise PeerError(Code.EPOCH_STALE, f"Expected keys of epoch {epoch.epoch}, {epoch.slots} slots.")
    own = (keys.channel_key, *keys.mask_keys)
    known = {key for offer in epoch.offers for key in (offer.channel_key, *offer.mask_keys)}
    if len(set(own)) != len(own) or not known.isdisjoint(own):
        raise PeerError(Code.BAD_ROSTER, "Expected keys that nobody else has, each used once.")
    member = verify_member(keys.certificate, at_ms)
    check_epoch_keys(keys, member_id=member.client_id)
    if not member.verify(keys.signature, keys.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The keys are not signed by their certificate.")
    for point in own:
        check_point(point)
    return replace(epoch, offers=(*epoch.offers, keys))


def make_roster(
    epoch: ServerEpoch,
    *,
    minimum: int,
    graph_seed: bytes,
    at_ms: int,
    ends_at_ms: int,
    verify_member: VerifyMember,
    sign: Sign,
) -> ServerEpoch:
    """Aggregator: close M0 and make M1 (`roster`), members in order of their ids.

    Who would make the others refuse the roster is left out: a certificate that ends before `ends_at_ms` or was
    revoked meanwhile, a certificate key that another one has too. `graph_seed`: 32 random bytes. Raises
    `PeerError(TOO_FEW)` under `minimum` offers, `LocalError` over 128.
    """
    if epoch.roster is not None:
        return epoch
    entries = _acceptable(epoch.offers, ends_at_ms, verify_member)
    n = len(entries)
    if n < minimum:
        raise PeerError(Code.TOO_FEW, f"Expected {minimum} clients or more in a key epoch, found {n}.")
    if n > COHORT_MAX:
        raise LocalError(Code.OUT_OF_RANGE, f"Expected at most {COHORT_MAX} clients in a cohort, found {n}.")
    roster = Roster(
        epoch=epoch.epoch,
        mode=Mode.PAIRWISE,
        neighbours=n - 1,
        threshold=epochs.threshold(n, epoch.trust),
        slots=epoch.slots,
        graph_seed=graph_seed,
        entries=entries,
        at_ms=at_ms,
        ends_at_ms=ends_at_ms,
        signature=b"",
    )
    return replace(epoch, roster=replace(roster, signature=sign(roster.signed)), offers=())


def _acceptable(
    offers: tuple[EpochKeys, ...], ends_at_ms: int, verify_member: VerifyMember
) -> tuple[EpochKeys, ...]:
    """The offers that every member will accept, by id."""
    entries = []
    owners: set[bytes] = set()
    for offer in sorted(offers, key=lambda offer: offer.client_id):
        with suppress(PeerError):
            owner = verify_member(offer.certificate, ends_at_ms).key_bytes
            if owner not in owners:
                owners.add(owner)
                entries.append(offer)
    return tuple(entries)


def accept_shares(epoch: ServerEpoch, shares: EpochShares) -> ServerEpoch:
    """Aggregator: take M2; the caller checked that member `shares.index` sent it, and stores it as a row.

    Raises `PeerError`: `WRONG_STATE` (no roster, or E is fixed), `MALFORMED`, `CONFLICTING_REPEAT`.
    """
    content = sha256(codec.dumps(shares))
    for received in epoch.received:
        if received.index == shares.index:
            if received.sha256 != content:
                raise PeerError(Code.CONFLICTING_REPEAT, "Other shares of this member are here.")
            return epoch
    if epoch.members:
        raise PeerError(Code.WRONG_STATE, "The set of members is fixed.", fix="Wait for the next key epoch.")
    roster = epoch.sealed_roster
    peers = [index for index in range(1, len(roster.entries) + 1) if index != shares.index]
    size = 2 * SHARE_BYTES * roster.slots + TAG_BYTES
    if shares.epoch != epoch.epoch or [box.peer for box in shares.boxes] != peers:
        raise PeerError(Code.MALFORMED, f"Expected one box for each of {len(peers)} other members.")
    if any(len(box.nonce) != NONCE_BYTES or len(box.sealed) != size for box in shares.boxes):
        raise PeerError(Code.MALFORMED, f"Expected a nonce of {NONCE_BYTES} and boxes of {size} bytes.")
    return replace(epoch, received=(*epoch.received, Received(shares.index, content)))


def activate(epoch: ServerEpoch, *, minimum: int, sign: Sign) -> ServerEpoch:
    """Aggregator: close M2 and fix E. Raises `PeerError(TOO_FEW)`: then the key epoch ends unused."""
    if epoch.members:
        return epoch
    members = tuple(sorted(received.index for received in epoch.received))
    least = max(minimum, epoch.sealed_roster.threshold + 1)
    if len(members) < least:
        raise PeerError(Code.TOO_FEW, f"Expected shares of {least} members or more, found {len(members)}.")
    signature = sign(active_signed(epoch.sealed_roster.hash, members))
    return replace(epoch, members=members, active_signature=signature)


def inbox_for(epoch: ServerEpoch, index: int, shares: Mapping[int, EpochShares]) -> Inbox:
    """Aggregator: M3 for one member of E, from the stored M2 of all members by index.

    Raises `PeerError(NOT_IN_COHORT)` for a client outside E, `WRONG_STATE` before E is fixed.
    """
    if not epoch.members:
        raise PeerError(Code.WRONG_STATE, "The set of members is not fixed yet.")
    epoch.entry(index)
    boxes = tuple(
        Box(sender, box.nonce, box.sealed)
        for sender in epoch.members
        if sender != index
        for box in shares[sender].boxes
        if box.peer == index
    )
    return Inbox(epoch.epoch, epoch.members, boxes, epoch.active_signature)
