"""One suite for every memory of a helper: once is once, also for two instances that are asked at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextlib import closing as closed_in_the_end
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedless.helper.memory import Memory
from fedless.helper.objects import ObjectMemory
from fedless.helper.postgresql import PostgresqlMemory
from fedless.helper.remembering import Remembering
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports
from fedless.protocol.secagg.ring import plan
from tests import objects

pytestmark = pytest.mark.real
ENCODING = plan(n=10, dimension=1, clip=1.0, max_examples=1)
NOISE = (b"a" * 32, b"b" * 32)
RACES = 5
Open = Callable[[], Remembering]


def closing(number: int, clients: range, model: bytes = b"model") -> Closing:
    return Closing(
        context=bytes([number] * 32),
        set_digest=bytes([number + 100] * 32),
        seed_marks=tuple(b"%d/%d" % (number, client) for client in clients),
        model_mark=model,
        client_ids=tuple(f"client-{client}" for client in clients),
        encoding=ENCODING,
        stream_seeds=(),
    )


@pytest.fixture(params=["directory", "postgresql", "objects"])
def instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens another instance on the same memory; of a directory there is but one, whose threads are the instances."""
    with ExitStack() as opened:
        if request.param == "directory":
            only = opened.enter_context(Memory(tmp_path))
            yield lambda: only
            return
        kind: Callable[[str], Remembering]
        if request.param == "postgresql":
            kind, url = PostgresqlMemory, request.getfixturevalue("postgresql").url()
        else:
            server = request.getfixturevalue("object_server")
            kind, (url, _) = ObjectMemory, server.bucket(tmp_path)
            for name, value in objects.variables(server.endpoint).items():
                monkeypatch.setenv(name, value)
        yield lambda: opened.enter_context(closed_in_the_end(kind(url)))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each gives, or the error that it raises, when all begin at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def work(index: int, call: Callable[[], Any]) -> None:
        barrier.wait(30)
        try:
            results[index] = call()
        except PeerError as error:
            results[index] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_closed_round_is_known_to_every_instance_and_repeats(instance: Open) -> None:
    first, set_ = instance(), closing(1, range(30))
    assert first.remembered(set_.context) is None
    recorded = first.record(set_, NOISE[0], 77)
    assert recorded == Closed(set_.set_digest, NOISE[0])
    for one in (first, instance()):
        known = one.remembered(set_.context)
        assert known is not None
        assert (known.closed, known.at_ms) == (recorded, 77)
        assert one.record(set_, NOISE[1], 99) == recorded


def test_same_round_closed_with_another_set_is_refused(instance: Open) -> None:
    set_ = closing(1, range(3))
    instance().record(set_, NOISE[0], 1)
    with pytest.raises(PeerError) as error:
        instance().record(replace(set_, set_digest=b"other"), NOISE[1], 2)
    assert error.value.code is Code.CONFLICTING_REPEAT


def test_seed_used_in_an_earlier_round_is_refused_and_nothing_of_that_set_is_recorded(instance: Open) -> None:
    instance().record(closing(1, range(30)), NOISE[0], 1)
    second = closing(2, range(40, 45), b"next model")
    again = replace(second, seed_marks=(*second.seed_marks[:4], b"1/29"))
    refused = instance().record(again, NOISE[0], 2)
    assert refused == RefusedReports({"client-44": Code.SEED_REPEATED})
    assert instance().remembered(second.context) is None
    assert isinstance(instance().record(second, NOISE[0], 3), Closed)


def test_client_summed_twice_over_one_model_is_refused(instance: Open) -> None:
    instance().record(closing(1, range(30)), NOISE[0], 1)
    refused = instance().record(closing(2, range(28, 33)), NOISE[0], 2)
    assert refused == RefusedReports({f"client-{i}": Code.MODEL_REPEATED for i in (28, 29)})
    assert isinstance(instance().record(closing(2, range(30, 33)), NOISE[0], 3), Closed)
    assert isinstance(instance().record(closing(3, range(30), b"next model"), NOISE[0], 4), Closed)


def test_same_seed_asked_of_two_instances_at_once_is_summed_once(instance: Open) -> None:
    one, two = instance(), instance()
    for race in range(RACES):
        sets = [closing(2 * race + i, range(5), b"model %d" % (2 * race + i)) for i in range(2)]
        shared = b"shared %d" % race
        left, right = (replace(each, seed_marks=(*each.seed_marks[:4], shared)) for each in sets)
        answers = at_once(partial(one.record, left, NOISE[0], 1), partial(two.record, right, NOISE[1], 1))
        assert sum(isinstance(answer, Closed) for answer in answers) == 1, answers
        refused = next(answer for answer in answers if isinstance(answer, RefusedReports))
        assert refused.reasons == {"client-4": Code.SEED_REPEATED}


def test_same_round_asked_of_two_instances_at_once_gets_one_noise(instance: Open) -> None:
    """Two answers with different noise could be subtracted."""
    one, two = instance(), instance()
    for race in range(RACES):
        set_ = closing(race, range(5), b"model %d" % race)
        answers = at_once(partial(one.record, set_, NOISE[0], 1), partial(two.record, set_, NOISE[1], 1))
        assert answers[0] == answers[1]
        assert answers[0].noise_seed in NOISE
        assert instance().record(set_, b"c" * 32, 9) == answers[0]


def test_same_round_with_two_sets_at_once_is_closed_with_one(instance: Open) -> None:
    one, two = instance(), instance()
    for race in range(RACES):
        left = closing(race, range(8), b"model %d" % race)
        right = replace(
            left, set_digest=b"fewer", client_ids=left.client_ids[:7], seed_marks=left.seed_marks[:7]
        )
        answers = at_once(partial(one.record, left, NOISE[0], 1), partial(two.record, right, NOISE[1], 1))
        assert sum(isinstance(answer, Closed) for answer in answers) == 1, answers
        refused = next(answer for answer in answers if isinstance(answer, PeerError))
        assert refused.code is Code.CONFLICTING_REPEAT


def test_same_client_and_model_in_two_rounds_at_once_is_summed_once(instance: Open) -> None:
    one, two = instance(), instance()
    for race in range(RACES):
        left, right = (closing(2 * race + i, range(3), b"model %d" % race) for i in range(2))
        answers = at_once(partial(one.record, left, NOISE[0], 1), partial(two.record, right, NOISE[1], 1))
        assert sum(isinstance(answer, Closed) for answer in answers) == 1, answers
        refused = next(answer for answer in answers if isinstance(answer, RefusedReports))
        assert set(refused.reasons.values()) == {Code.MODEL_REPEATED}


def test_call_replayed_to_two_instances_at_once_is_taken_once(instance: Open) -> None:
    one, two = instance(), instance()
    for race in range(RACES):
        name = bytes([race] * 16)
        taken = at_once(partial(one.take_call, name, 1000, 10), partial(two.take_call, name, 1000, 10))
        assert sorted(taken) == [False, True]
        assert not instance().take_call(name, 1000, 999)


def test_many_instances_close_many_rounds_and_all_are_kept(instance: Open) -> None:
    sets = [closing(number, range(3), b"model %d" % number) for number in range(12)]
    ways = [instance() for _ in range(3)]

    def close(own: Remembering, part: list[Closing]) -> list[Closed | RefusedReports]:
        return [own.record(each, NOISE[0], 1) for each in part]

    answers = at_once(*(partial(close, own, sets[i::3]) for i, own in enumerate(ways)))
    assert all(isinstance(each, Closed) for part in answers for each in part)
    after = instance()
    assert [
        known.closed.set_digest for each in sets if (known := after.remembered(each.context)) is not None
    ] == [each.set_digest for each in sets]
