"""*Pure.* The aggregator's side of a masked round in pairwise mode: M4 out to M8 out.

`ServerRound` is what the store keeps, one row; masked vectors are spooled by the driver and added to one
accumulator, chunk by chunk. The aggregator may restart between any two messages: every function takes the
stored values and returns new ones, and what was signed once is in them and is only repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedless.protocol.crypto import sha256
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, apply_streams
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import (
    MaskedReport,
    RoundOpen,
    RoundResult,
    Sign,
    UnmaskRequest,
    UnmaskResponse,
    VerifyMember,
    alive_signed,
    bitmap,
    chosen,
)
from fedless.protocol.secagg.recovery import Recovery, recover_seeds
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import Mark


@dataclass(frozen=True)
class Reported:
    """Whose report was accepted, and the SHA-256 of its masked vector."""

    index: int
    sha256: bytes


@dataclass(frozen=True)
class ServerRound:
    """One masked round at the aggregator.

    `reports` is fixed once `request` (M6) is signed; `responses` are the holders' M7 in order of arrival;
    `suspects` the holders whose shares were found wrong; `result` (M8) ends the round.
    """

    open: RoundOpen
    context: bytes
    reports: tuple[Reported, ...] = ()
    request: UnmaskRequest | None = None
    responses: tuple[UnmaskResponse, ...] = ()
    suspects: tuple[int, ...] = ()
    result: RoundResult | None = None


# -- M4 ----------------------------------------------------------------------------------------


def open_round(epoch: ServerEpoch, opened: RoundOpen, *, sign: Sign) -> tuple[ServerEpoch, ServerRound]:
    """Aggregator: sign M4 for the next slot; the slot is used up from here on, whatever happens.

    `opened` comes with an empty signature and `slot` = `epoch.next_slot`. Raises `PeerError`: `WRONG_STATE`
    (no E yet, or no slot left), `SLOT_USED`, `BAD_THRESHOLD`, `RING_OVERFLOW`.
    """
    if not epoch.members or epoch.is_over():
        raise PeerError(Code.WRONG_STATE, f"Key epoch {epoch.epoch} has no slot to open.")
    if opened.epoch != epoch.epoch or opened.slot != epoch.next_slot:
        raise PeerError(Code.SLOT_USED, f"Expected slot {epoch.next_slot}, found {opened.slot}.")
    t = epoch.sealed_roster.threshold
    if not t <= opened.min_alive <= len(epoch.members):
        raise PeerError(
            Code.BAD_THRESHOLD, f"Expected {t} to {len(epoch.members)} survivors, found {opened.min_alive}."
        )
    ring.check(opened.encoding, len(epoch.members))
    context = opened.context(epoch.sealed_roster.hash, epoch.active_hash)
    signed = replace(opened, signature=sign(opened.signed(context)))
    return replace(epoch, next_slot=epoch.next_slot + 1), ServerRound(signed, context)


# -- M5 ----------------------------------------------------------------------------------------


def accept_report(
    epoch: ServerEpoch, round_: ServerRound, report: MaskedReport, *, at_ms: int, verify_member: VerifyMember
) -> ServerRound:
    """Aggregator: count a report whose vector was spooled and has the length and digest of its head.

    The first one of a member wins; its byte-identical repeat changes nothing. Raises `PeerError`:
    `ALREADY_REPORTED` (another one), `ROUND_CLOSED`, `NOT_IN_COHORT`, `BAD_CONTEXT`, `WRONG_LENGTH`,
    `BAD_SIGNATURE`, or what `verify_member` raises (a certificate that was revoked since).
    """
    for known in round_.reports:
        if known.index == report.index:
            if known.sha256 != report.sha256:
                raise PeerError(Code.ALREADY_REPORTED, "The first report of a member counts.")
            return round_
    check_report(epoch, round_, report, at_ms=at_ms, verify_member=verify_member)
    return replace(round_, reports=(*round_.reports, Reported(report.index, report.sha256)))


def check_report(
    epoch: ServerEpoch, round_: ServerRound, report: MaskedReport, *, at_ms: int, verify_member: VerifyMember
) -> None:
    """Aggregator: refuse a head before its vector is taken. Raises as `accept_report`."""
    if round_.request is not None or round_.result is not None:
        raise PeerError(Code.ROUND_CLOSED)
    entry = epoch.entry(report.index)
    if report.context != round_.context or report.round_id != round_.open.round_id:
        raise PeerError(Code.BAD_CONTEXT, "The report is for another round, model, task or roster.")
    expected = round_.open.encoding.report_bytes
    if report.length_bytes != expected:
        raise PeerError(Code.WRONG_LENGTH, f"Expected {expected} bytes, found {report.length_bytes}.")
    member = verify_member(entry.certificate, at_ms)
    if not member.verify(report.signature, report.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The report is not signed by its member.")


# -- M6 ----------------------------------------------------------------------------------------


def close_reports(epoch: ServerEpoch, round_: ServerRound, *, sign: Sign) -> tuple[ServerEpoch, ServerRound]:
    """Aggregator: after the deadline, sign M6 (`request`), or abandon when fewer than min_alive reported."""
    if round_.request is not None or round_.result is not None:
        return epoch, round_
    if len(round_.reports) < round_.open.min_alive:
        return abandon(epoch, round_, Code.TOO_FEW, sign=sign)
    alive = bitmap(epoch.members, [reported.index for reported in round_.reports])
    signature = sign(alive_signed(round_.context, alive))
    return epoch, replace(round_, request=UnmaskRequest(round_.open, alive, signature))


# -- M7 ----------------------------------------------------------------------------------------


def accept_response(epoch: ServerEpoch, round_: ServerRound, response: UnmaskResponse) -> ServerRound:
    """Aggregator: take M7; the caller checked that member `response.index` sent it.

    Raises `PeerError`: `WRONG_STATE` (no M6 was signed), `NOT_IN_COHORT`, `UNKNOWN_ROUND`, `WRONG_LENGTH`,
    `CONFLICTING_REPEAT`. After the round ended a response is dropped without a word.
    """
    if round_.result is not None:
        return round_
    if round_.request is None:
        raise PeerError(Code.WRONG_STATE, "The round does not ask for shares.")
    epoch.entry(response.index)
    if (response.round_id, response.epoch) != (round_.open.round_id, epoch.epoch):
        raise PeerError(Code.UNKNOWN_ROUND, "The shares are for another round.")
    expected = SHARE_BYTES * len(epoch.members)
    if len(response.shares) != expected:
        raise PeerError(
            Code.WRONG_LENGTH, f"Expected {expected} bytes of shares, found {len(response.shares)}."
        )
    for known in round_.responses:
        if known.index == response.index:
            if known != response:
                raise PeerError(Code.CONFLICTING_REPEAT, "Other shares of this holder are here.")
            return round_
    return replace(round_, responses=(*round_.responses, response))


def can_recover(epoch: ServerEpoch, round_: ServerRound) -> bool:
    """Whether enough holders answered to try."""
    return len(round_.responses) >= epoch.sealed_roster.threshold


def recover(epoch: ServerEpoch, round_: ServerRound) -> tuple[ServerRound, Recovery]:
    """Aggregator: rebuild the secrets, and from them the seeds that take the masks off the sum.

    The round comes back with the holders of wrong shares as `suspects`. Raises `PeerError`: `TOO_FEW` (fewer
    than t shares of some secret), `BAD_SHARE` (none of the sets of t holders that were tried fits): wait for
    more responses, or abandon.
    """
    if round_.request is None:
        raise PeerError(Code.WRONG_STATE, "The round does not ask for shares.")
    alive = chosen(epoch.members, round_.request.alive)
    recovery = recover_seeds(
        epoch.sealed_roster, epoch.members, alive, round_.open.slot, round_.context, round_.responses
    )
    return replace(round_, suspects=recovery.suspects), recovery


def remove_masks(round_: ServerRound, recovery: Recovery, total: Words) -> None:
    """Aggregator: turn the sum of all accepted masked vectors into the sum of the encoded ones, in place."""
    apply_streams(total, round_.open.prg, recovery.plus, recovery.minus)


# -- M8 ----------------------------------------------------------------------------------------


def finish(
    epoch: ServerEpoch, round_: ServerRound, total: Words, *, sign: Sign
) -> tuple[ServerEpoch, ServerRound, ring.Decoded]:
    """Aggregator: the unmasked sum as a mean, and M8 (`result`).

    Raises `PeerError(OUT_OF_RANGE)` as `ring.decode`: abandon then.
    """
    if round_.request is None:
        raise PeerError(Code.WRONG_STATE, "The round was not closed.")
    decoded = ring.decode(round_.open.encoding, total, len(round_.reports))
    sum_digest = sha256(total.data.cast("B"))
    ended = _end(round_, sum_digest=sum_digest, reason="", sign=sign)
    return replace(epoch, abandoned_in_a_row=0), ended, decoded


def abandon(
    epoch: ServerEpoch, round_: ServerRound, reason: Code, *, sign: Sign
) -> tuple[ServerEpoch, ServerRound]:
    """Aggregator: end the round without a sum; its slot is burnt and nothing of it was revealed."""
    if round_.result is not None:
        return epoch, round_
    ended = _end(round_, sum_digest=b"", reason=reason.value, sign=sign)
    return replace(epoch, abandoned_in_a_row=epoch.abandoned_in_a_row + 1), ended


def _end(round_: ServerRound, *, sum_digest: bytes, reason: str, sign: Sign) -> ServerRound:
    alive = b"" if round_.request is None else round_.request.alive
    result = RoundResult(
        round_id=round_.open.round_id,
        epoch=round_.open.epoch,
        slot=round_.open.slot,
        context=round_.context,
        alive=alive,
        survivors=int.from_bytes(alive, "big").bit_count(),
        sum_digest=sum_digest,
        reason=reason,
        signature=b"",
    )
    return replace(round_, result=replace(result, signature=sign(result.signed)))


# -- lost state --------------------------------------------------------------------------------


def check_mark(epoch: ServerEpoch, rounds: Sequence[ServerRound], index: int, mark: Mark) -> None:
    """Aggregator: notice a client whose state was lost, or restored from an old copy.

    `rounds`: the stored rounds of this key epoch. Raises `PeerError(STATE_OLDER)`: the client leaves the key
    epoch (it must not mask again in a slot in which it reported) and takes part in the next one.
    """
    if mark.epoch > epoch.epoch:
        return
    reported = [r.open.slot + 1 for r in rounds if any(known.index == index for known in r.reports)]
    answered = [r.open.slot + 1 for r in rounds if any(known.index == index for known in r.responses)]
    older = mark.reported < max(reported, default=0) or mark.answered < max(answered, default=0)
    if older or mark.epoch < epoch.epoch:
        raise PeerError(
            Code.STATE_OLDER,
            f"The aggregator's record of key epoch {epoch.epoch} is ahead of this client's.",
            fix="The client leaves the key epoch and joins the next one.",
        )
