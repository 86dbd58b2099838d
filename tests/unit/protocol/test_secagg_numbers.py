"""Thresholds, cohorts, key epochs, policies, and the codec."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode, PolicyMessage
from fedless.protocol.secagg import codec, epochs
from fedless.protocol.secagg.epochs import Trust, cohort_sizes, is_over, next_slots, threshold
from fedless.protocol.secagg.policy import Policy, from_enrollment, tighten
from fedless.protocol.secagg.state import ClientState


def test_thresholds_of_the_specification() -> None:
    found = {n: threshold(n, Trust.CHEATING) for n in (8, 10, 20, 50, 100)}
    assert found == {8: 6, 10: 7, 20: 14, 50: 35, 100: 70}


@pytest.mark.parametrize("n", range(3, 129))
def test_every_sum_that_can_be_opened_holds_half_of_the_honest_members(n: int) -> None:
    a, t = epochs.colluders(n), threshold(n, Trust.CHEATING)
    honest = n - a
    assert t - a >= honest / 2  # survivors are t at least, and A of them may collude
    assert 2 * (t - a) > honest  # honest holders answer once, so two bitmaps cannot both be opened
    assert a < threshold(n, Trust.CURIOUS) <= t <= n


def test_cohorts_are_about_a_hundred_and_never_over_128() -> None:
    assert cohort_sizes(8) == [8]
    assert cohort_sizes(128) == [128]
    assert cohort_sizes(129) == [65, 64]
    assert cohort_sizes(500) == [100] * 5
    for n in range(1, 3000):
        sizes = cohort_sizes(n)
        assert sum(sizes) == n
        assert max(sizes) <= epochs.COHORT_MAX
        assert max(sizes) - min(sizes) <= 1


def test_key_epochs_grow_from_one_slot_to_sixteen() -> None:
    lengths = [0]
    for _ in range(7):
        lengths.append(next_slots(lengths[-1]))
    assert lengths[1:] == [1, 2, 4, 8, 16, 16, 16]


@pytest.mark.parametrize(
    ("next_slot", "present", "abandoned", "expected"),
    [(0, 10, 0, False), (4, 10, 0, True), (1, 7, 0, True), (1, 8, 1, False), (1, 10, 2, True)],
)
def test_key_epoch_ends(next_slot: int, present: int, abandoned: int, expected: bool) -> None:
    found = is_over(next_slot=next_slot, slots=4, present=present, t=7, abandoned_in_a_row=abandoned)
    assert found is expected


def test_server_cannot_talk_a_policy_down() -> None:
    own = Policy(minimum_cohort=20, minimum_threshold=15, modes=frozenset({Mode.PAIRWISE}))
    loose = PolicyMessage(
        minimum_cohort=2,
        minimum_threshold=1,
        modes=(Mode.PLAIN, Mode.PAIRWISE, Mode.HELPER),
        count_functions=True,
        trust=Trust.CURIOUS,
        helper_key_digest=b"x" * 32,
    )
    assert tighten(own, loose) == own
    assert tighten(own, PolicyMessage()) == own


def test_remote_change_may_tighten() -> None:
    own = Policy(trust=Trust.CURIOUS)
    strict = PolicyMessage(
        minimum_cohort=30, minimum_threshold=25, modes=(Mode.PAIRWISE,), trust=Trust.CHEATING
    )
    expected = Policy(30, 25, frozenset({Mode.PAIRWISE}), trust=Trust.CHEATING)
    assert tighten(own, strict) == expected


def test_enrollment_fills_blanks() -> None:
    assert from_enrollment(PolicyMessage()) == Policy()
    stated = from_enrollment(
        PolicyMessage(minimum_cohort=3, modes=(Mode.PLAIN,), helper_key_digest=b"k" * 32)
    )
    assert (stated.minimum_cohort, stated.modes) == (3, frozenset({Mode.PLAIN}))


def test_plain_rounds_are_refused_by_default() -> None:
    with pytest.raises(PeerError) as refusal:
        Policy().check_mode(Mode.PLAIN)
    assert refusal.value.code is Code.POLICY
    Policy(modes=frozenset({Mode.PLAIN})).check_mode(Mode.PLAIN)


def test_only_devices_count_towards_the_minimum() -> None:
    with pytest.raises(PeerError) as refusal:
        Policy(minimum_cohort=8).check_cohort(10, 7, 7)
    assert refusal.value.code is Code.POLICY
    Policy(minimum_cohort=8, count_functions=True).check_cohort(10, 7, 7)


@dataclass(frozen=True)
class _Inner:
    flag: bool
    ratio: float


@dataclass(frozen=True)
class _Sample:
    number: int
    text: str
    raw: bytes
    trust: Trust
    many: tuple[_Inner, ...]
    maybe: _Inner | None


SAMPLE = _Sample(7, "é", b"\x00\xff", Trust.CURIOUS, (_Inner(True, 0.5), _Inner(False, -1.0)), None)


def test_codec_gives_back_what_it_took() -> None:
    for value in (SAMPLE, _Sample(0, "", b"", Trust.CHEATING, (), _Inner(True, 2.0)), ClientState("c")):
        assert codec.loads(type(value), codec.dumps(value)) == value


def test_truncated_over_long_and_corrupted_bytes_are_refused() -> None:
    data = codec.dumps(SAMPLE)
    for changed in [data[:at] for at in range(len(data))] + [data + b"\x00"]:
        with pytest.raises(PeerError) as refusal:
            codec.loads(_Sample, changed)
        assert refusal.value.code is Code.MALFORMED
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        try:
            found = codec.loads(_Sample, changed)
        except PeerError as error:
            assert error.code is Code.MALFORMED  # noqa: PT017 - either is right, nothing else is
        else:
            assert codec.dumps(found) == changed
