"""*Pure.* The client's side of a masked round in pairwise mode: M4 to M8. The set-up is in `setup.py`.

A client is not a tool: it binds a slot to the first round that it verified, masks once, answers once, and
refuses a server that asks for more. Every function takes the state and returns a new one; the driver stores
the new state (and the masked report) before it sends anything.
"""

from __future__ import annotations

from dataclasses import replace

from fedless.protocol.crypto import KEY_BYTES, sha256, x25519_agreement
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import Words, apply_streams, word_dtype
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.epochs import honest_survivors
from fedless.protocol.secagg.keys import advance, pair_seed, self_mask_seed, slot_secrets
from fedless.protocol.secagg.messages import (
    MaskedReport,
    RoundOpen,
    RoundResult,
    Sign,
    UnmaskRequest,
    UnmaskResponse,
    VerifyAggregator,
    active_signed,
    alive_signed,
    chosen,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import ClientState, EpochState, Slot, helper_mark, model_mark


def context_of(epoch: EpochState, opened: RoundOpen) -> bytes:
    """The ctx of a round as this client computes it: from its own roster's hash and E."""
    active = sha256(active_signed(epoch.roster_hash, epoch.members))
    return opened.context(epoch.roster_hash, active)


# -- M4 ----------------------------------------------------------------------------------------


def accept_round(
    state: ClientState,
    opened: RoundOpen,
    *,
    model_digest: bytes,
    task_digest: bytes,
    verify_aggregator: VerifyAggregator,
    policy: Policy | None = None,
) -> ClientState:
    """Client: check M4 and bind its slot to it; every earlier slot is closed and erased for good.

    `model_digest`, `task_digest`: SHA-256 of the bytes that this client really has. Raises `PeerError`:
    `EPOCH_STALE`, `WRONG_STATE`, `SLOT_CLOSED`, `BAD_SIGNATURE`, `SLOT_USED` (bound to another round),
    `BAD_CONTEXT` (another model or task), `BAD_THRESHOLD`, `RING_OVERFLOW`, `POLICY` (too little noise),
    `MODEL_REPEATED`.
    """
    epoch = state.epoch(opened.epoch)
    slot = epoch.slot(opened.slot)
    context = _verified_context(epoch, opened, verify_aggregator)
    if slot.context:
        if slot.context != context:
            raise PeerError(Code.SLOT_USED, f"Slot {slot.number} belongs to another round.")
        return state
    if opened.model_digest != model_digest or opened.task_digest != task_digest:
        raise PeerError(Code.BAD_CONTEXT, "The round names another model or task than this client got.")
    ring.check(opened.encoding, len(epoch.members))
    if policy is not None:
        honest = honest_survivors(opened.min_alive, len(epoch.members))
        policy.check_noise(opened.encoding.noise_multiplier(honest))
    model = model_mark(opened.model_digest, opened.encoding.dimension)
    if model in state.spent or helper_mark(model) in state.spent:
        raise PeerError(
            Code.MODEL_REPEATED, f"A sum over model version {opened.model_version} may exist already."
        )
    return _bind(state, epoch, replace(slot, context=context, model=model))


def _verified_context(epoch: EpochState, opened: RoundOpen, verify_aggregator: VerifyAggregator) -> bytes:
    context = context_of(epoch, opened)
    if not verify_aggregator(opened.signature, opened.signed(context)):
        raise PeerError(Code.BAD_SIGNATURE, "The round is not signed by the aggregator for this roster.")
    if not epoch.threshold <= opened.min_alive <= len(epoch.members):
        raise PeerError(
            Code.BAD_THRESHOLD,
            f"Expected {epoch.threshold} to {len(epoch.members)} survivors, found {opened.min_alive}.",
        )
    return context


def _bind(state: ClientState, epoch: EpochState, slot: Slot) -> ClientState:
    """The state with `slot` bound, and everything before it erased: earlier slots, earlier key epochs."""
    bound = epoch.closed(slot.number).with_slot(slot)
    kept = tuple(other for other in state.with_epoch(bound).epochs if other.epoch >= epoch.epoch)
    return replace(state, epochs=kept)


# -- M5 ----------------------------------------------------------------------------------------


def mask_report(
    state: ClientState, opened: RoundOpen, words: Words, *, sign: Sign
) -> tuple[ClientState, MaskedReport]:
    """Client: mask `words` (as `ring.encode` made them) in place; the report's head.

    The driver stores the new state, the head and the masked bytes in one transaction before the first byte is
    sent, and sends only those bytes ever. Raises `PeerError` as `ClientState.epoch` and `EpochState.slot`;
    `LocalError` `WRONG_STATE` (the slot is not bound to this round), `ALREADY_REPORTED`, `WRONG_LENGTH`.
    """
    epoch = state.epoch(opened.epoch)
    slot = epoch.slot(opened.slot)
    context = context_of(epoch, opened)
    if slot.context != context:
        raise LocalError(Code.WRONG_STATE, "The slot is not bound to this round.")
    if slot.report_sha256 or slot.alive or epoch.chain_slot > slot.number:
        raise LocalError(Code.ALREADY_REPORTED, "A report of this slot exists; only its bytes may be sent.")
    if len(words) != opened.encoding.words or words.dtype != word_dtype(opened.encoding.bits):
        raise LocalError(Code.WRONG_LENGTH, f"Expected {opened.encoding.words} ring words.")
    plus, minus = _mask_seeds(epoch, slot, context)
    apply_streams(words, opened.prg, plus, minus)
    head = MaskedReport(
        round_id=opened.round_id,
        epoch=epoch.epoch,
        index=epoch.index,
        context=context,
        sha256=sha256(words.data.cast("B")),
        length_bytes=words.nbytes,
        signature=b"",
    )
    head = replace(head, signature=sign(head.signed))
    reported = replace(
        epoch.with_slot(replace(slot, report_sha256=head.sha256)),
        chain_slot=slot.number + 1,
        chain_key=advance(epoch.chain_key, slot.number + 1 - epoch.chain_slot),
        reported=slot.number + 1,
    )
    return state.with_epoch(reported), head


def _mask_seeds(epoch: EpochState, slot: Slot, context: bytes) -> tuple[list[bytes], list[bytes]]:
    """Seeds to add: the self mask and pairs with higher indices; to subtract: pairs with lower ones."""
    chain = advance(epoch.chain_key, slot.number - epoch.chain_slot)
    secrets = slot_secrets(chain, slot.number)
    plus = [self_mask_seed(secrets.self_seed, context, epoch.index)]
    minus: list[bytes] = []
    agree = x25519_agreement(secrets.mask_private)
    for at, peer in enumerate(epoch.members):
        if peer == epoch.index:
            continue
        public = slot.peer_keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]
        seed = pair_seed(agree, public, context, epoch.index, peer)
        (plus if peer > epoch.index else minus).append(seed)
    return plus, minus


# -- M6 -> M7 ----------------------------------------------------------------------------------


def answer_unmask(
    state: ClientState, request: UnmaskRequest, *, verify_aggregator: VerifyAggregator
) -> tuple[ClientState, UnmaskResponse]:
    """Holder: one share of each member, of its self seed if it reported, of its mask key if not.

    A holder that slept through the round answers too. The driver stores the new state before it sends the
    response. Raises `PeerError`: `BAD_SIGNATURE`, `SLOT_CLOSED`, `SLOT_USED`, `BAD_THRESHOLD`, `BAD_BITMAP`
    (fewer than min_alive, or this client's bit is set although it did not report), `TWO_BITMAPS`.
    """
    opened = request.open
    epoch = state.epoch(opened.epoch)
    slot = epoch.slot(opened.slot)
    context = _verified_context(epoch, opened, verify_aggregator)
    if slot.context and slot.context != context:
        raise PeerError(Code.SLOT_USED, f"Slot {slot.number} belongs to another round.")
    if not verify_aggregator(request.signature, alive_signed(context, request.alive)):
        raise PeerError(Code.BAD_SIGNATURE, "The list of survivors is not signed by the aggregator.")
    response = UnmaskResponse(opened.round_id, epoch.epoch, epoch.index, slot.answer)
    if slot.alive:
        if slot.alive != request.alive:
            raise PeerError(Code.TWO_BITMAPS, f"Slot {slot.number} was answered for other survivors.")
        return state, response
    alive = chosen(epoch.members, request.alive)
    _check_survivors(epoch, slot, opened, alive)
    answer = _answer(epoch, slot, alive)
    answered = replace(
        slot, context=context, alive=request.alive, answer=answer, mask_shares=b"", self_shares=b""
    )
    if slot.report_sha256:
        state = state.spend(slot.model)
    bound = _bind(state, replace(epoch, answered=slot.number + 1), answered)
    return bound, replace(response, shares=answer)


def _check_survivors(epoch: EpochState, slot: Slot, opened: RoundOpen, alive: tuple[int, ...]) -> None:
    if len(alive) < opened.min_alive:
        raise PeerError(
            Code.BAD_BITMAP, f"Expected {opened.min_alive} survivors or more, found {len(alive)}."
        )
    if epoch.index in alive and not slot.report_sha256:
        raise PeerError(Code.BAD_BITMAP, "This client is said to have reported, but it did not.")


def _answer(epoch: EpochState, slot: Slot, alive: tuple[int, ...]) -> bytes:
    survivors = set(alive)
    parts = []
    for at, member in enumerate(epoch.members):
        shares = slot.self_shares if member in survivors else slot.mask_shares
        parts.append(shares[at * SHARE_BYTES : (at + 1) * SHARE_BYTES])
    return b"".join(parts)


def left_out(state: ClientState, request: UnmaskRequest) -> bool:
    """Whether this client reported in the slot but the survivors do not name it: allowed, but logged."""
    epoch = state.epoch(request.open.epoch)
    reported = epoch.slot(request.open.slot).report_sha256
    return bool(reported) and epoch.index not in chosen(epoch.members, request.alive)


# -- M8 ----------------------------------------------------------------------------------------


def accept_result(
    state: ClientState, result: RoundResult, *, verify_aggregator: VerifyAggregator
) -> ClientState:
    """Client: close the slot of a round that ended, and erase its shares and keys.

    If the sum was opened, or may have been, the model is remembered as spent. A result for a slot that is
    closed already changes nothing. Raises `PeerError` `BAD_SIGNATURE`, `BAD_CONTEXT` (another round's), or
    `TWO_BITMAPS`: with the M6 that this client answered the result proves that the aggregator cheated.
    """
    epoch = state.epoch(result.epoch)
    if not verify_aggregator(result.signature, result.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The result is not signed by the aggregator.")
    if result.slot < epoch.closed_below:
        return state
    slot = epoch.slot(result.slot)
    if slot.context and slot.context != result.context:
        raise PeerError(Code.BAD_CONTEXT, "The result is of another round than the slot's.")
    if slot.alive and result.alive and slot.alive != result.alive:
        raise PeerError(Code.TWO_BITMAPS, f"Slot {slot.number} was answered for other survivors.")
    if slot.report_sha256 and (result.alive or slot.alive):
        state = state.spend(slot.model)
    return state.with_epoch(epoch.closed(result.slot + 1))
