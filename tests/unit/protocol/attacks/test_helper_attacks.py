"""Helper mode: the honest round, and the attacks on it that the pure code refuses (protocol.md section 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from fedless.protocol import crypto
from fedless.protocol.crypto import Prg
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.prg import Words
from fedless.protocol.secagg import helper
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.helper import Closed, Closing, HelperRules, RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport, MaskSum
from fedless.protocol.secagg.messages import Member
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.ring import RingEncoding, decode, plan
from fedless.protocol.secagg.state import ClientState, model_mark
from tests.secagg_fleet import (
    NOW_MS,
    Fleet,
    aggregator_sign,
    certificate_of,
    client_sign,
    counting,
    stored,
    unit_words,
    verify_aggregator,
    verify_member,
)

HPKE_PRIVATE = counting(100)
HPKE_PUBLIC = crypto.x25519_public(HPKE_PRIVATE)
HELPER = Member("helper", is_device=False, public_key=crypto.p256_private(999).public_key())
ENCODING = plan(n=10, dimension=10, clip=1.0, max_examples=10)
POLICY = Policy(minimum_cohort=3, helper_key_digest=crypto.sha256(HPKE_PUBLIC))
RULES = HelperRules(minimum=3)
FRESH = ClientState("client-001")


def opening(encoding: RingEncoding = ENCODING, **changes: object) -> HelperOpen:
    opened = HelperOpen(
        round_id=5,
        model_version=2,
        model_digest=crypto.sha256(b"model"),
        task_digest=crypto.sha256(b"task"),
        encoding=encoding,
        prg=Prg.AES,
        n_max=10,
        deadline_at_ms=NOW_MS,
        helper_certificate=b"helper",
        helper_key=HPKE_PUBLIC,
        signature=b"",
    )
    opened = dataclasses.replace(opened, **changes)  # type: ignore[arg-type]
    return stored(helper.open_helper_round(opened, sign=aggregator_sign))


def accept(opened: HelperOpen, policy: Policy = POLICY, state: ClientState = FRESH) -> ClientState:
    return helper.accept_helper_round(
        opened,
        policy,
        state,
        model_digest=crypto.sha256(b"model"),
        task_digest=crypto.sha256(b"task"),
        verify_aggregator=verify_aggregator,
    )


def report(
    opened: HelperOpen, number: int, *, seed: bytes | None = None, role: str = "device"
) -> tuple[HelperReport, Words]:
    words = unit_words(opened.encoding, number - 1)
    client_id = f"client-{number:03d}"
    head = helper.mask_for_helper(
        opened,
        client_id,
        certificate_of(client_id, number, role),
        words,
        seed=seed or counting(number),
        sign=client_sign(number),
    )
    return stored(head), words


def resigned(head: HelperReport, number: int, **changes: object) -> HelperReport:
    changed = dataclasses.replace(head, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(changed, signature=client_sign(number)(changed.signed))


def close(
    request: CloseRequest, closed: Closed | None = None, rules: HelperRules = RULES
) -> Closing | RefusedReports:
    helper.check_request(request, rules, own_key=HPKE_PUBLIC)
    return helper.close_set(
        request, rules, closed, hpke_private=HPKE_PRIVATE, at_ms=NOW_MS, verify_member=verify_member
    )


def closing(request: CloseRequest) -> Closing:
    decided = close(request)
    assert isinstance(decided, Closing)
    return decided


def refused(request: CloseRequest, closed: Closed | None = None, rules: HelperRules = RULES) -> Code:
    with pytest.raises(PeerError) as refusal:
        close(request, closed, rules)
    return refusal.value.code


def requested(opened: HelperOpen, numbers: Sequence[int]) -> tuple[CloseRequest, Words]:
    reports = [report(opened, number) for number in numbers]
    total = np.zeros_like(reports[0][1])
    for _, words in reports:
        np.add(total, words, out=total)
    return CloseRequest(opened, tuple(head for head, _ in reports)), total


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("prg", list(Prg))
@pytest.mark.parametrize("present", [[1, 2, 3], [2, 4, 6, 8, 10], list(range(1, 11))])
def test_sum_over_any_set_is_exact(bits: int, prg: Prg, present: list[int]) -> None:
    encoding = plan(n=10, dimension=10, bits=bits, clip=1.0, max_examples=10)
    opened = opening(encoding, prg=prg)
    accept(opened)
    request, total = requested(opened, present)
    assert not np.any(total[:10] == 1) or bits == 16
    decided = closing(stored(request))
    words = helper.sum_masks(decided, opened, noise_seed=bytes(32))
    answer = stored(helper.sign_sum(decided, words, sign=client_sign(999)))
    helper.check_mask_sum(request, answer, words, HELPER)
    helper.subtract_masks(total, words)
    assert total.tolist() == [1 if i + 1 in present else 0 for i in range(10)] + [len(present)]
    assert decode(encoding, total, len(present)).weight > 0


def test_helpers_noise_is_added_once_and_repeats() -> None:
    encoding = plan(
        n=10, dimension=4000, clip=1.0, max_examples=1, l2_clip=1.0, sum_noise=3.0, helper_noise=3.0
    )
    opened = opening(encoding)
    reports = []
    total = np.zeros(4000, dtype=np.uint32)
    for number in (1, 2, 3):
        words = np.zeros(4000, dtype=np.uint32)
        client_id = f"client-{number:03d}"
        certificate = certificate_of(client_id, number)
        reports.append(
            helper.mask_for_helper(
                opened, client_id, certificate, words, seed=counting(number), sign=client_sign(number)
            )
        )
        total += words
    decided = closing(CloseRequest(opened, tuple(reports)))
    first = helper.sum_masks(decided, opened, noise_seed=counting(3))
    assert np.array_equal(first, helper.sum_masks(decided, opened, noise_seed=counting(3)))
    helper.subtract_masks(total, first)
    noise = total.view("<i4") / encoding.scale
    assert float(noise.std()) == pytest.approx(3.0, rel=0.05)


def test_seed_twice_in_one_set_is_refused_by_name() -> None:
    opened = opening()
    heads = [report(opened, number)[0] for number in (1, 2, 3)]
    twin, _ = report(opened, 4, seed=counting(2))
    decided = close(CloseRequest(opened, (*heads, twin)))
    assert isinstance(decided, RefusedReports)
    assert decided.reasons == {"client-002": Code.SEED_REPEATED, "client-004": Code.SEED_REPEATED}


def test_seed_used_in_an_earlier_round_is_refused() -> None:
    first = closing(requested(opening(), [1, 2, 3])[0])
    later = opening(round_id=6, model_digest=crypto.sha256(b"next model"))
    second = closing(requested(later, [3, 4, 5])[0])
    used = frozenset(first.seed_marks) & frozenset(second.seed_marks)
    found = helper.repeats(second, used, frozenset())
    assert found is not None
    assert found.reasons == {"client-003": Code.SEED_REPEATED}
    assert helper.repeats(second, frozenset(), frozenset()) is None


def test_same_model_summed_twice_is_refused_for_the_clients_in_both() -> None:
    """Sums over one model with and without a client would single it out."""
    first = closing(requested(opening(), [1, 2, 3, 4])[0])
    second = closing(requested(opening(round_id=6), [1, 2, 3, 5])[0])
    assert first.model_mark == second.model_mark
    counted = frozenset(first.client_ids)
    found = helper.repeats(second, frozenset(), counted)
    assert found is not None
    assert set(found.reasons) == {"client-001", "client-002", "client-003"}


def test_helper_key_swapped_is_refused_by_the_client() -> None:
    other = opening(helper_key=crypto.x25519_public(counting(1)))
    for opened, policy in ((other, POLICY), (opening(), Policy(minimum_cohort=3))):
        with pytest.raises(PeerError) as refusal:
            accept(opened, policy)
        assert refusal.value.code is Code.HELPER_KEY
    assert refused(requested(other, [1, 2, 3])[0]) is Code.HELPER_KEY


def test_same_round_closed_twice_with_different_sets_is_refused() -> None:
    opened = opening()
    request, _ = requested(opened, [1, 2, 3])
    closed = Closed(request.set_digest, counting(5))
    assert refused(requested(opened, [1, 2, 3, 4])[0], closed) is Code.CONFLICTING_REPEAT
    reordered = CloseRequest(opened, tuple(reversed(request.reports)))
    assert isinstance(close(reordered, closed), Closing)
    assert reordered.set_digest == request.set_digest


def test_set_below_the_helpers_minimum_is_refused() -> None:
    request, _ = requested(opening(), [1, 2])
    assert refused(request) is Code.TOO_FEW
    assert refused(CloseRequest(request.open, ())) is Code.TOO_FEW


def test_set_filled_up_with_functions_is_refused() -> None:
    opened = opening()
    heads = [report(opened, 1)[0], *(report(opened, n, role="function")[0] for n in (2, 3))]
    request = CloseRequest(opened, tuple(heads))
    assert refused(request) is Code.TOO_FEW
    assert isinstance(close(request, rules=HelperRules(3, count_functions=True)), Closing)


def test_more_reports_than_n_max_are_refused() -> None:
    request, _ = requested(opening(n_max=4), [1, 2, 3, 4, 5])
    assert refused(request) is Code.OUT_OF_RANGE


def test_client_twice_in_one_set_is_refused() -> None:
    request, _ = requested(opening(), [1, 2, 3])
    assert refused(CloseRequest(request.open, (*request.reports, request.reports[0]))) is Code.MALFORMED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"client_id": "client-009"}, Code.NOT_IN_COHORT),
        ({"context": bytes(32)}, Code.BAD_CONTEXT),
        ({"envelope": bytes(79)}, Code.MALFORMED),
        ({"envelope": bytes(80)}, Code.BAD_BOX),
        ({"sha256": b""}, Code.MALFORMED),
        ({"certificate": certificate_of("client-002", 2, "operator")}, Code.WRONG_ROLE),
        ({"certificate": certificate_of("client-002", 7)}, Code.BAD_SIGNATURE),
    ],
)
def test_one_bad_report_is_refused_by_name_and_the_rest_may_be_closed(
    changes: dict[str, object], code: Code
) -> None:
    request, _ = requested(opening(), [1, 2, 3, 4])
    bad = resigned(request.reports[1], 2, **changes)
    heads = (request.reports[0], bad, *request.reports[2:])
    decided = close(CloseRequest(request.open, heads))
    assert isinstance(decided, RefusedReports)
    assert decided.reasons == {bad.client_id: code}
    rest = CloseRequest(request.open, (request.reports[0], *request.reports[2:]))
    assert isinstance(close(rest), Closing)


def test_envelope_of_another_client_is_refused() -> None:
    """A client that copies what another one sent cannot be counted with it."""
    request, _ = requested(opening(), [1, 2, 3])
    copied = resigned(request.reports[1], 2, envelope=request.reports[0].envelope)
    decided = close(CloseRequest(request.open, (request.reports[0], copied, request.reports[2])))
    assert isinstance(decided, RefusedReports)
    assert decided.reasons == {"client-002": Code.BAD_BOX}


def test_report_of_a_revoked_client_is_refused_by_the_helpers_own_list() -> None:
    request, _ = requested(opening(), [1, 2, 3, 4])

    def deny(certificate: bytes, at_ms: int) -> Member:
        member = verify_member(certificate, at_ms)
        if member.client_id == "client-004":
            raise PeerError(Code.CERTIFICATE_REVOKED)
        return member

    decided = helper.close_set(
        request, RULES, None, hpke_private=HPKE_PRIVATE, at_ms=NOW_MS, verify_member=deny
    )
    assert isinstance(decided, RefusedReports)
    assert decided.reasons == {"client-004": Code.CERTIFICATE_REVOKED}


def test_round_that_a_client_must_not_accept() -> None:
    with pytest.raises(PeerError) as refusal:
        accept(opening(), dataclasses.replace(POLICY, modes=frozenset({Mode.PAIRWISE})))
    assert refusal.value.code is Code.POLICY
    with pytest.raises(PeerError) as refusal:
        accept(opening(), dataclasses.replace(POLICY, minimum_cohort=11))
    assert refusal.value.code is Code.POLICY
    with pytest.raises(PeerError) as refusal:
        accept(dataclasses.replace(opening(), deadline_at_ms=1))
    assert refusal.value.code is Code.BAD_SIGNATURE
    with pytest.raises(PeerError) as refusal:
        accept(opening(model_digest=crypto.sha256(b"swapped")))
    assert refusal.value.code is Code.BAD_CONTEXT
    greedy = dataclasses.replace(opening(), n_max=11)
    greedy = dataclasses.replace(greedy, signature=aggregator_sign(greedy.signed))
    with pytest.raises(PeerError) as refusal:
        accept(greedy)
    assert refusal.value.code is Code.RING_OVERFLOW


def test_model_swapped_for_one_client_masks_do_not_cancel() -> None:
    """Whatever the aggregator does with the digest in its head, the stream is salted with the real context."""
    opened, other = opening(), opening(model_digest=crypto.sha256(b"swapped"))
    _, masked = report(other, 1)
    _, honest = report(opened, 1)
    assert not np.any(masked == honest)


def test_same_model_summed_in_both_modes_is_refused() -> None:
    """The helper knows nothing of pairwise sums, so the client must."""
    opened = opening()
    reported = accept(opened)
    assert accept(opened, state=reported) == reported  # an abandoned round may be tried again
    mark = model_mark(opened.model_digest, ENCODING.dimension)
    with pytest.raises(PeerError) as refusal:
        accept(opened, state=ClientState("client-001").spend(mark))
    assert refusal.value.code is Code.MODEL_REPEATED
    fleet = Fleet(4, trust=Trust.CURIOUS).set_up()
    fleet.states[1] = dataclasses.replace(fleet.states[1], spent=reported.spent)
    with pytest.raises(PeerError) as refusal:
        fleet.accept_round(1, fleet.open(model_digest=opened.model_digest).open)
    assert refusal.value.code is Code.MODEL_REPEATED


def test_words_of_wrong_length_are_our_own_fault() -> None:
    for words in (np.zeros(10, np.uint32), np.zeros(11, np.uint16)):
        with pytest.raises(LocalError) as error:
            helper.mask_for_helper(opening(), "c", b"", words, seed=bytes(32), sign=client_sign(1))
        assert error.value.code is Code.WRONG_LENGTH


@pytest.mark.parametrize("what", ["context", "set_digest", "sha256", "signature", "words", "length"])
def test_sum_that_is_not_the_helpers_is_refused_by_the_aggregator(what: str) -> None:
    opened = opening()
    request, _ = requested(opened, [1, 2, 3])
    decided = closing(request)
    words = helper.sum_masks(decided, opened, noise_seed=bytes(32))
    answer: MaskSum = helper.sign_sum(decided, words, sign=client_sign(999))
    codes = {"context": Code.BAD_CONTEXT, "set_digest": Code.BAD_CONTEXT, "length": Code.WRONG_LENGTH}
    codes |= {"sha256": Code.WRONG_DIGEST, "words": Code.WRONG_DIGEST, "signature": Code.BAD_SIGNATURE}
    if what == "words":
        words[3] += 1
    elif what == "length":
        words = words[:-1]
    else:
        answer = dataclasses.replace(answer, **{what: bytes(32)})
    with pytest.raises(PeerError) as refusal:
        helper.check_mask_sum(request, answer, words, HELPER)
    assert refusal.value.code is codes[what]


def test_secrets_are_in_no_repr() -> None:
    decided = closing(requested(opening(), [1, 2, 3])[0])
    texts = [repr(decided), repr(Closed(bytes(32), counting(77)))]
    for secret in (*decided.stream_seeds, counting(77), counting(1)):
        assert all(repr(secret)[2:-1] not in text for text in texts)
