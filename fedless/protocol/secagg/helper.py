"""*Pure.* Helper mode: one message per client, and a second party that only ever sees seeds.

Three parties run parts of this module: the client masks with the stream of a fresh seed and seals the seed to
the helper; the helper, once per round, sums the streams of a set that is large enough; the aggregator takes
that sum off the sum of the masked vectors. Trust: aggregator and helper do not collude (as in DAP and Prio).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedless.protocol.crypto import (
    HPKE_OVERHEAD_BYTES,
    KEY_BYTES,
    Label,
    digest,
    hkdf,
    hpke_open,
    hpke_seal,
    info,
    sha256,
)
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.prg import Words, apply_streams, word_dtype
from fedless.protocol.privacy import discrete_gaussian
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.helper_messages import (
    CloseRequest,
    HelperOpen,
    HelperReport,
    MaskSum,
    envelope_info,
)
from fedless.protocol.secagg.messages import Member, Sign, VerifyAggregator, VerifyMember
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.state import ClientState, helper_mark, model_mark

ENVELOPE_BYTES = KEY_BYTES + HPKE_OVERHEAD_BYTES


def stream_seed(seed: bytes, context: bytes) -> bytes:
    """HKDF(z, salt=ctx, I("helper-mask")): what is expanded."""
    return hkdf(seed, info(Label.HELPER_MASK), salt=context)


# -- the client --------------------------------------------------------------------------------


def accept_helper_round(
    opened: HelperOpen,
    policy: Policy,
    state: ClientState,
    *,
    model_digest: bytes,
    task_digest: bytes,
    verify_aggregator: VerifyAggregator,
) -> ClientState:
    """Client: check an opened round before it trains.

    `state`: that of pairwise mode, for its memory of models; the new one is stored with the report. Within
    helper mode the helper sees to it that nobody is counted twice over one model (an abandoned round may be
    tried again), but it does not know of sums in pairwise mode, and these must not know of its own.
    `model_digest`, `task_digest`: SHA-256 of the bytes that the client really has. Raises `PeerError`: `POLICY`,
    `HELPER_KEY` (not the pinned one), `BAD_SIGNATURE`, `BAD_CONTEXT`, `RING_OVERFLOW`, `MODEL_REPEATED`.
    """
    policy.check_mode(Mode.HELPER)
    if not policy.pins(opened.helper_key):
        raise PeerError(
            Code.HELPER_KEY,
            "The round's helper is not the one that this client was enrolled with.",
            fix="If the helper was replaced, set its key with `fedless-edge policy`.",
        )
    if opened.n_max < policy.minimum_cohort:
        raise PeerError(
            Code.POLICY, f"Expected {policy.minimum_cohort} clients or more, found {opened.n_max} at most."
        )
    if not verify_aggregator(opened.signature, opened.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The round is not signed by the aggregator.")
    if opened.model_digest != model_digest or opened.task_digest != task_digest:
        raise PeerError(Code.BAD_CONTEXT, "The round names another model or task than this client got.")
    ring.check(opened.encoding, opened.n_max)
    policy.check_noise(opened.encoding.noise_multiplier(0))
    mark = model_mark(opened.model_digest, opened.encoding.dimension)
    if mark in state.spent:
        raise PeerError(Code.MODEL_REPEATED, "A sum over this model in pairwise mode may exist already.")
    return state.spend(helper_mark(mark))


def mask_for_helper(
    opened: HelperOpen, client_id: str, certificate: bytes, words: Words, *, seed: bytes, sign: Sign
) -> HelperReport:
    """Client: mask `words` (as `ring.encode` made them) in place; the report's head.

    `seed`: 32 fresh random bytes, used here and never again. The driver stores head and masked bytes before
    the first byte is sent, and sends only those bytes. Raises `LocalError(WRONG_LENGTH)`.
    """
    if len(words) != opened.encoding.words or words.dtype != word_dtype(opened.encoding.bits):
        raise LocalError(Code.WRONG_LENGTH, f"Expected {opened.encoding.words} ring words.")
    context = opened.context
    apply_streams(words, opened.prg, plus=[stream_seed(seed, context)])
    head = HelperReport(
        context=context,
        client_id=client_id,
        certificate=certificate,
        sha256=sha256(words.data.cast("B")),
        envelope=hpke_seal(opened.helper_key, envelope_info(context, client_id), seed),
        signature=b"",
    )
    return replace(head, signature=sign(head.signed))


# -- the aggregator ----------------------------------------------------------------------------


def open_helper_round(opened: HelperOpen, *, sign: Sign) -> HelperOpen:
    """Aggregator: check and sign an opened round. Raises `PeerError(RING_OVERFLOW)`."""
    ring.check(opened.encoding, opened.n_max)
    return replace(opened, signature=sign(opened.signed))


def check_helper_report(
    opened: HelperOpen, report: HelperReport, *, at_ms: int, verify_member: VerifyMember
) -> Member:
    """Aggregator and helper: one report's certificate, context, sizes and signature; whose it is.

    Raises `PeerError`: `BAD_CONTEXT`, `MALFORMED`, `NOT_IN_COHORT`, `BAD_SIGNATURE`, or what `verify_member`
    raises.
    """
    if report.context != opened.context:
        raise PeerError(Code.BAD_CONTEXT, "The report is for another round, model, task or helper.")
    if len(report.envelope) != ENVELOPE_BYTES or len(report.sha256) != KEY_BYTES:
        raise PeerError(Code.MALFORMED, f"Expected an envelope of {ENVELOPE_BYTES} bytes and a SHA-256.")
    member = verify_member(report.certificate, at_ms)
    if member.client_id != report.client_id:
        raise PeerError(Code.NOT_IN_COHORT, "The report names another client than its certificate.")
    if not member.verify(report.signature, report.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The report is not signed by its client.")
    return member


def check_mask_sum(request: CloseRequest, answer: MaskSum, words: Words, helper: Member) -> None:
    """Aggregator: whether the helper's answer is for this set and complete.

    Raises `PeerError`: `BAD_CONTEXT`, `WRONG_LENGTH`, `WRONG_DIGEST`, `BAD_SIGNATURE`.
    """
    if answer.context != request.open.context or answer.set_digest != request.set_digest:
        raise PeerError(Code.BAD_CONTEXT, "The sum of masks is for another round or another set.")
    if len(words) != request.open.encoding.words:
        raise PeerError(Code.WRONG_LENGTH, f"Expected {request.open.encoding.words} words.")
    if sha256(words.data.cast("B")) != answer.sha256:
        raise PeerError(Code.WRONG_DIGEST, "The sum of masks was changed on its way.")
    if not helper.verify(answer.signature, answer.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The sum of masks is not signed by the helper.")


def subtract_masks(total: Words, mask_words: Words) -> None:
    """Aggregator: the sum of the masked vectors minus the sum of the masks, in place."""
    np.subtract(total, mask_words, out=total)


# -- the helper --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HelperRules:
    """What the helper demands, whatever the aggregator says.

    `minimum`: reports in a set at least. `count_functions`: whether those of functions count towards it.
    `minimum_noise`: the noise multiplier at least that it is asked to add (0: none).
    """

    minimum: int = 8
    count_functions: bool = False
    minimum_noise: float = 0.0


@dataclass(frozen=True)
class Closed:
    """What the helper remembers of a round that it closed: which set, and the seed of its own noise."""

    set_digest: bytes
    noise_seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Closing:
    """A set that may be closed.

    To be stored, in one transaction, before the sum is sent: `context` with `set_digest`, `seed_marks`, and
    `counted` (model mark and client id). `stream_seeds` are expanded and forgotten.
    """

    context: bytes
    set_digest: bytes
    seed_marks: tuple[bytes, ...]
    model_mark: bytes
    client_ids: tuple[str, ...]
    encoding: ring.RingEncoding
    stream_seeds: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class RefusedReports:
    """Reports that keep a set from being closed, by client; the aggregator may ask again without them."""

    reasons: Mapping[str, Code]


def check_request(request: CloseRequest, rules: HelperRules, *, own_key: bytes) -> None:
    """Helper: what can be said of a request as a whole, before any report is looked at.

    `own_key`: the helper's HPKE public key. Raises `PeerError`: `HELPER_KEY`, `TOO_FEW`, `OUT_OF_RANGE` (more
    than n_max), `MALFORMED` (a client twice), `RING_OVERFLOW`, `POLICY` (less noise than it demands).
    """
    if request.open.helper_key != own_key:
        raise PeerError(Code.HELPER_KEY, "The round was opened for another helper.")
    ring.check(request.open.encoding, request.open.n_max)
    noise = request.open.encoding.noise_multiplier(0)
    if noise < rules.minimum_noise:
        detail = f"This helper adds noise of {rules.minimum_noise:g} times the sensitivity or more, found {noise:g}."
        raise PeerError(Code.POLICY, detail, fix='Give the task [privacy] with noise = "helper".')
    n = len(request.reports)
    if n < rules.minimum:
        raise PeerError(Code.TOO_FEW, f"Expected {rules.minimum} reports or more, found {n}.")
    if n > request.open.n_max:
        raise PeerError(Code.OUT_OF_RANGE, f"Expected at most {request.open.n_max} reports, found {n}.")
    if len({report.client_id for report in request.reports}) != n:
        raise PeerError(Code.MALFORMED, "Expected every client once.")


def close_set(
    request: CloseRequest,
    rules: HelperRules,
    closed: Closed | None,
    *,
    hpke_private: bytes,
    at_ms: int,
    verify_member: VerifyMember,
) -> Closing | RefusedReports:
    """Helper: decide on a set, after `check_request`.

    `closed`: what is stored of this context, if anything. Refused reports come back by client; raises
    `PeerError` `CONFLICTING_REPEAT` (the round was closed with another set) or `TOO_FEW` (of devices).
    """
    if closed is not None and closed.set_digest != request.set_digest:
        raise PeerError(Code.CONFLICTING_REPEAT, "The round was closed with another set.")
    reasons: dict[str, Code] = {}
    seeds: dict[str, bytes] = {}
    devices = 0
    for report in request.reports:
        try:
            member = check_helper_report(request.open, report, at_ms=at_ms, verify_member=verify_member)
            bound = envelope_info(report.context, report.client_id)
            seeds[report.client_id] = hpke_open(hpke_private, bound, report.envelope)
            devices += member.is_device
        except PeerError as error:
            reasons[report.client_id] = error.code
    times = Counter(seeds.values())
    for client_id, seed in seeds.items():
        if times[seed] > 1 or len(seed) != KEY_BYTES:
            reasons[client_id] = Code.SEED_REPEATED
    if reasons:
        return RefusedReports(reasons)
    if not rules.count_functions and devices < rules.minimum:
        raise PeerError(Code.TOO_FEW, f"Expected reports of {rules.minimum} devices, found {devices}.")
    return _closing(request, seeds)


def _closing(request: CloseRequest, seeds: Mapping[str, bytes]) -> Closing:
    context = request.open.context
    return Closing(
        context=context,
        set_digest=request.set_digest,
        seed_marks=tuple(digest(Label.SEED, seed) for seed in seeds.values()),
        model_mark=model_mark(request.open.model_digest, request.open.encoding.dimension),
        client_ids=tuple(seeds),
        encoding=request.open.encoding,
        stream_seeds=tuple(stream_seed(seed, context) for seed in seeds.values()),
    )


def repeats(closing: Closing, used_seeds: frozenset[bytes], counted: frozenset[str]) -> RefusedReports | None:
    """Helper: whether anything of a new set was summed before; None if not.

    `used_seeds`: those of `closing.seed_marks` that are stored already. `counted`: those of
    `closing.client_ids` that were summed over this model before: two sums over one model that differ by one
    client would single it out.
    """
    reasons = {client_id: Code.MODEL_REPEATED for client_id in closing.client_ids if client_id in counted}
    for client_id, seed in zip(closing.client_ids, closing.seed_marks, strict=True):
        if seed in used_seeds:
            reasons[client_id] = Code.SEED_REPEATED
    return RefusedReports(reasons) if reasons else None


def sum_masks(closing: Closing, opened: HelperOpen, *, noise_seed: bytes) -> Words:
    """Helper: the sum of the streams, [words], plus the helper's noise if the task asks for it.

    `noise_seed`: 32 random bytes stored with the closed round, so that a repeat gives the same answer.
    """
    encoding = closing.encoding
    words: Words = np.zeros(encoding.words, dtype=word_dtype(encoding.bits))
    apply_streams(words, opened.prg, plus=closing.stream_seeds)
    if encoding.helper_sigma:
        words -= discrete_gaussian(noise_seed, encoding.helper_sigma, len(words)).astype(words.dtype)
    return words


def sign_sum(closing: Closing, words: Words, *, sign: Sign) -> MaskSum:
    """Helper: what goes beside the words."""
    answer = MaskSum(closing.context, closing.set_digest, sha256(words.data.cast("B")), b"")
    return replace(answer, signature=sign(answer.signed))
