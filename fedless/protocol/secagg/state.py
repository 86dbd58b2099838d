"""*Pure.* What a client keeps between two messages of pairwise mode, as one value for its journal.

`codec.dumps(state)` goes into the journal (mode 0600, `secure_delete`) before the message that a function
returned with it is sent. What is erased here is gone from the value; that flash storage may still hold an old
copy is a stated limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg.keys import advance
from fedless.protocol.secagg.messages import EpochKeys, EpochShares, Roster

SPENT_MAX = 1024


@dataclass(frozen=True)
class Slot:
    """One slot that is not closed yet.

    In order of E, members first to last: `peer_keys` the public keys S_v (32 B each), `mask_shares` and
    `self_shares` the shares of s_v and b_v that this client holds (33 B each). `context` is the ctx to which
    the slot is bound, `model` the spent-mark of its model (both empty: not bound). `report_sha256` is set
    once a report was masked. `alive` and `answer` are set once an M6 was answered; all shares but the
    answered ones are erased then.
    """

    number: int
    peer_keys: bytes
    mask_shares: bytes = field(repr=False)
    self_shares: bytes = field(repr=False)
    context: bytes = b""
    model: bytes = b""
    report_sha256: bytes = b""
    alive: bytes = b""
    answer: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class EpochState:
    """One key epoch, from M0 on.

    `chain_key` is ck of slot `chain_slot` (empty when all slots are used). `channel_private`, `roster` and
    `shares` (own M2) are there until M3 was accepted, `members` (E) and `slots` after. `devices`: the indices
    whose certificates say device. Slots below `closed_below` are closed. `reported` and `answered` are one
    past the highest slot that was reported in or answered for.
    """

    epoch: int
    keys: EpochKeys
    chain_slot: int
    chain_key: bytes = field(repr=False)
    channel_private: bytes = field(repr=False)
    roster: Roster | None = None
    roster_hash: bytes = b""
    index: int = 0
    threshold: int = 0
    devices: tuple[int, ...] = ()
    shares: EpochShares | None = None
    members: tuple[int, ...] = ()
    slots: tuple[Slot, ...] = ()
    closed_below: int = 0
    reported: int = 0
    answered: int = 0

    def slot(self, number: int) -> Slot:
        """The open slot of this number. `PeerError` `WRONG_STATE`, `SLOT_CLOSED` or `OUT_OF_RANGE`."""
        if not self.members:
            raise PeerError(Code.WRONG_STATE, "The key epoch's set-up is not complete on this client.")
        if number < self.closed_below:
            raise PeerError(Code.SLOT_CLOSED, f"Slot {number}; slots below {self.closed_below} are closed.")
        for slot in self.slots:
            if slot.number == number:
                return slot
        raise PeerError(Code.OUT_OF_RANGE, f"The key epoch has no slot {number}.")

    def with_slot(self, changed: Slot) -> EpochState:
        """The epoch with this slot's row replaced."""
        slots = tuple(changed if slot.number == changed.number else slot for slot in self.slots)
        return replace(self, slots=slots)

    def closed(self, below: int) -> EpochState:
        """The epoch with every slot under `below` erased: shares, answers, and the chain up to it."""
        if below <= self.closed_below:
            return self
        steps = max(0, below - self.chain_slot)
        used_up = below >= len(self.keys.mask_keys)
        chain = b"" if used_up else advance(self.chain_key, steps)
        return replace(
            self,
            slots=tuple(slot for slot in self.slots if slot.number >= below),
            closed_below=below,
            chain_slot=self.chain_slot + steps,
            chain_key=chain,
        )


@dataclass(frozen=True)
class ClientState:
    """Everything pairwise mode keeps on one client.

    `last_epoch`: the highest key epoch that was begun (0: none). `spent`: marks of the models on which this
    client reported in a slot that may have been opened, newest last. `epochs`: at most an active one and one
    in set-up.
    """

    client_id: str
    last_epoch: int = 0
    spent: tuple[bytes, ...] = ()
    epochs: tuple[EpochState, ...] = ()

    def epoch(self, number: int) -> EpochState:
        """The key epoch with this number. Raises `PeerError(EPOCH_STALE)` for one that is not kept."""
        for epoch in self.epochs:
            if epoch.epoch == number:
                return epoch
        raise PeerError(Code.EPOCH_STALE, f"This client holds no keys of key epoch {number}.")

    def with_epoch(self, changed: EpochState) -> ClientState:
        """The state with this key epoch replaced."""
        epochs = tuple(changed if epoch.epoch == changed.epoch else epoch for epoch in self.epochs)
        return replace(self, epochs=epochs)

    def spend(self, model: bytes) -> ClientState:
        """The state that remembers never to report on this model again."""
        if not model or model in self.spent:
            return self
        return replace(self, spent=(*self.spent, model)[-SPENT_MAX:])


def model_mark(model_digest: bytes, dimension: int) -> bytes:
    """What "the same model" means: its digest, trained on or only evaluated (`dimension` 0: nothing but extras)."""
    return model_digest + (b"train" if dimension else b"evaluate")


def helper_mark(mark: bytes) -> bytes:
    """The mark of a model on which this client reported in helper mode."""
    return mark + b", helper"


@dataclass(frozen=True)
class Mark:
    """How far a client's state has come; it travels in check-ins, so that an old copy is noticed."""

    epoch: int
    reported: int
    answered: int


def mark(state: ClientState) -> Mark:
    """The client's mark: of its newest key epoch that it can use, else of the newest at all."""
    usable = [epoch for epoch in state.epochs if epoch.members] or list(state.epochs)
    if not usable:
        return Mark(state.last_epoch, 0, 0)
    newest = usable[-1]
    return Mark(newest.epoch, newest.reported, newest.answered)


def leave(state: ClientState, epoch: int) -> ClientState:
    """The state without this key epoch: its keys and shares are erased, and it cannot be joined again."""
    return replace(state, epochs=tuple(kept for kept in state.epochs if kept.epoch != epoch))
