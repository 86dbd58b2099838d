"""*Pure.* The messages of masked rounds, M0 to M8, and exactly what is hashed and signed.

Every signature and every hash is over `crypto.info(label, ...)` with the fields that the functions here list,
in that order; docs/security.md shows the same as tables. Indices count from 1 in the roster's order; a bitmap
has one bit for each member of E in ascending order of index, least significant bit of the first byte first.
Helper mode's messages are in `helper_messages.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedless.protocol.crypto import Label, P256Public, Prg, digest, ecdsa_verify, info, p256_public_der
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.ring import RingEncoding
from fedless.protocol.secagg.shamir import SHARE_BYTES

MISSING_SHARE = b"\xff" * SHARE_BYTES
"""Stands for a share that a holder could not open: it is no element of the field."""


@dataclass(frozen=True)
class Member:
    """What a verified certificate says: whose it is, whether of a device or a function, and its P-256 key."""

    client_id: str
    is_device: bool
    public_key: P256Public

    @property
    def key_bytes(self) -> bytes:
        """The public key as bytes, to tell two members apart."""
        return p256_public_der(self.public_key)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the member signed `message`."""
        return ecdsa_verify(self.public_key, signature, message)


Sign = Callable[[bytes], bytes]
"""Signs bytes with the caller's own key: ECDSA (DER) for a client or helper, Ed25519 for the aggregator."""

VerifyMember = Callable[[bytes, int], Member]
"""(certificate, at_ms) -> the member; verifies the chain and the role device or function at that moment, and
raises `PeerError`. Certificates are backdated, so valid at a later moment means valid until then."""

VerifyAggregator = Callable[[bytes, bytes], bool]
"""(signature, message) -> whether the aggregator's ticket key signed it."""


# -- M0 to M3: the set-up of a key epoch -------------------------------------------------------


@dataclass(frozen=True)
class EpochKeys:
    """M0, client to aggregator: public keys for one key epoch.

    `certificate`: the client's leaf, DER. `channel_key` C and `mask_keys` S_0 .. S_{B-1}: X25519, 32 bytes.
    `commitments` com_0 .. com_{B-1}: 32 bytes each. Rates are megabytes per second of each stream cipher
    (0: not measured), not signed. `signature`: ECDSA, DER, by the certificate's key.
    """

    epoch: int
    client_id: str
    certificate: bytes
    channel_key: bytes
    mask_keys: tuple[bytes, ...]
    commitments: tuple[bytes, ...]
    aes_mb_per_s: int
    chacha_mb_per_s: int
    signature: bytes

    @property
    def signed(self) -> bytes:
        """("epoch-keys", id, e, C, [S], [com])."""
        return info(
            Label.EPOCH_KEYS,
            self.client_id,
            self.epoch,
            self.channel_key,
            [*self.mask_keys],
            [*self.commitments],
        )


def self_commitment(client_id: str, epoch: int, slot: int, self_seed: bytes) -> bytes:
    """H("self-commit", id, e, r, b_r): com_r."""
    return digest(Label.SELF_COMMIT, client_id, epoch, slot, self_seed)


@dataclass(frozen=True)
class Roster:
    """M1, aggregator to client: the members of a key epoch; entry number i (from 1) is member i.

    `neighbours` k is n - 1 (complete graph), `threshold` t, `slots` B, `graph_seed` 32 bytes (bound,
    unused by the complete graph). Certificates are checked at `at_ms` and must be valid until `ends_at_ms`;
    `signature` (Ed25519) covers both and the roster's hash.
    """

    epoch: int
    mode: Mode
    neighbours: int
    threshold: int
    slots: int
    graph_seed: bytes
    entries: tuple[EpochKeys, ...]
    at_ms: int
    ends_at_ms: int
    signature: bytes

    @property
    def hash(self) -> bytes:
        """H("roster", e, mode, k, t, B, seed, H("roster-entries", [(i, id, cert, C, [S], [com], sig)]))."""
        entries = digest(
            Label.ROSTER_ENTRIES,
            [
                (
                    index,
                    entry.client_id,
                    entry.certificate,
                    entry.channel_key,
                    [*entry.mask_keys],
                    [*entry.commitments],
                    entry.signature,
                )
                for index, entry in enumerate(self.entries, start=1)
            ],
        )
        return digest(
            Label.ROSTER,
            self.epoch,
            self.mode.value,
            self.neighbours,
            self.threshold,
            self.slots,
            self.graph_seed,
            entries,
        )

    @property
    def signed(self) -> bytes:
        """("roster-time", rh, at, ends at)."""
        return info(Label.ROSTER_TIME, self.hash, self.at_ms, self.ends_at_ms)

    def index_of(self, client_id: str) -> int:
        """The member's index, from 1. Raises `PeerError(NOT_IN_COHORT)`."""
        for index, entry in enumerate(self.entries, start=1):
            if entry.client_id == client_id:
                return index
        raise PeerError(Code.NOT_IN_COHORT, "The client is not in the roster.")


@dataclass(frozen=True)
class Box:
    """A sealed box between two members: `peer` is the receiver's index in M2, the sender's in M3.

    `nonce` 12 bytes; `sealed` 66 B + 16 bytes: for each slot r the shares of s_r and of b_r, and GCM's tag.
    """

    peer: int
    nonce: bytes
    sealed: bytes


@dataclass(frozen=True)
class EpochShares:
    """M2, client to aggregator: one box for every other member of the roster, in order of index."""

    epoch: int
    index: int
    boxes: tuple[Box, ...]


def share_key_info(sender: int, receiver: int) -> bytes:
    """HKDF info of a box key: I("share-key", i, v), with the salt rh."""
    return info(Label.SHARE_KEY, sender, receiver)


def share_associated(roster_hash: bytes, epoch: int, sender: int, receiver: int, t: int, slots: int) -> bytes:
    """Associated data of a box: I("share", rh, e, i, v, t, B)."""
    return info(Label.SHARE, roster_hash, epoch, sender, receiver, t, slots)


@dataclass(frozen=True)
class Inbox:
    """M3, aggregator to client: the boxes for it, and E, the members whose M2 arrived.

    `members`: E's indices, ascending. `signature` (Ed25519) over I("active", rh, [E]).
    """

    epoch: int
    members: tuple[int, ...]
    boxes: tuple[Box, ...]
    signature: bytes


def active_signed(roster_hash: bytes, members: Sequence[int]) -> bytes:
    """I("active", rh, [E]); its SHA-256 is H("active", rh, E)."""
    return info(Label.ACTIVE, roster_hash, [*members])


# -- M4 to M8: one round -----------------------------------------------------------------------


@dataclass(frozen=True)
class RoundOpen:
    """M4, aggregator to client: one round of a key epoch, in `slot`.

    Digests are SHA-256, 32 bytes. `deadline_at_ms` is the aggregator's clock. `signature`: Ed25519.
    """

    round_id: int
    epoch: int
    slot: int
    model_version: int
    model_digest: bytes
    task_digest: bytes
    encoding: RingEncoding
    prg: Prg
    min_alive: int
    deadline_at_ms: int
    signature: bytes

    def context(self, roster_hash: bytes, active_hash: bytes) -> bytes:
        """H("round-ctx", rh, H(active), e, r, round id, model, task, H(encoding), PRG, w): ctx, 32 bytes."""
        return digest(
            Label.ROUND_CTX,
            roster_hash,
            active_hash,
            self.epoch,
            self.slot,
            self.round_id,
            self.model_digest,
            self.task_digest,
            self.encoding.hash,
            self.prg.value,
            self.encoding.bits,
        )

    def signed(self, context: bytes) -> bytes:
        """("round-open", ctx, model version, min_alive, deadline)."""
        return info(Label.ROUND_OPEN, context, self.model_version, self.min_alive, self.deadline_at_ms)


@dataclass(frozen=True)
class MaskedReport:
    """M5, client to aggregator: who reports what for which context; the vector travels beside it.

    `sha256`: of the masked vector's bytes. `signature`: ECDSA, DER, over I("masked", ctx, i, SHA-256(y)).
    """

    round_id: int
    epoch: int
    index: int
    context: bytes
    sha256: bytes
    length_bytes: int
    signature: bytes

    @property
    def signed(self) -> bytes:
        """("masked", ctx, i, SHA-256(y))."""
        return info(Label.MASKED, self.context, self.index, self.sha256)


@dataclass(frozen=True)
class UnmaskRequest:
    """M6, aggregator to holders: the whole signed M4, and who reported.

    `alive`: bitmap over E. `signature`: Ed25519 over I("alive", ctx, bitmap).
    """

    open: RoundOpen
    alive: bytes
    signature: bytes


def alive_signed(context: bytes, alive: bytes) -> bytes:
    """("alive", ctx, bitmap)."""
    return info(Label.ALIVE, context, alive)


@dataclass(frozen=True)
class UnmaskResponse:
    """M7, holder to aggregator: for each member of E in order one 33-byte share.

    Of its self seed b if it reported, of its mask key s if it did not; `MISSING_SHARE` where the box of that
    member could not be opened.
    """

    round_id: int
    epoch: int
    index: int
    shares: bytes


@dataclass(frozen=True)
class RoundResult:
    """M8, aggregator to all: how the round ended.

    `reason` is empty when the sum was opened, else why the round was abandoned (a `Code` value); then
    `sum_digest` is empty and `alive` is that of the M6 that was signed, or empty. `survivors`: its popcount.
    `signature`: Ed25519 over I("round-result", ctx, bitmap, survivors, digest of the sum, reason).
    """

    round_id: int
    epoch: int
    slot: int
    context: bytes
    alive: bytes
    survivors: int
    sum_digest: bytes
    reason: str
    signature: bytes

    @property
    def signed(self) -> bytes:
        """("round-result", ctx, bitmap, count, digest of the sum, reason)."""
        return info(
            Label.ROUND_RESULT, self.context, self.alive, self.survivors, self.sum_digest, self.reason
        )


# -- bitmaps -----------------------------------------------------------------------------------


def bitmap(members: Sequence[int], chosen: Sequence[int]) -> bytes:
    """The bitmap over `members` (E, ascending) in which the bits of `chosen` are 1."""
    bits = bytearray(-(len(members) // -8))
    wanted = set(chosen)
    for at, index in enumerate(members):
        if index in wanted:
            bits[at // 8] |= 1 << (at % 8)
    return bytes(bits)


def chosen(members: Sequence[int], bits: bytes) -> tuple[int, ...]:
    """The indices whose bit is 1. Raises `PeerError(BAD_BITMAP)` for a wrong length or a bit beyond E."""
    if len(bits) != -(len(members) // -8) or int.from_bytes(bits, "little") >> len(members):
        raise PeerError(Code.BAD_BITMAP, f"Expected one bit for each of {len(members)} members.")
    return tuple(index for at, index in enumerate(members) if bits[at // 8] >> (at % 8) & 1)
