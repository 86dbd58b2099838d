"""Orders at a device that meets trouble: forged ones, answers too long, an aggregator that goes away, a full outbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime.functions import Functions
from edge_runtime.journal import Journal
from fedless.protocol import bundle_format, wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import ANSWER_BYTES_MAX, Action, Order
from tests.edge_device import counters, wake
from tests.edge_fleet import FOREIGN_KEY, PUBLISHER_KEY, FakeAggregator, wake_bytes

pytestmark = pytest.mark.real
CALL = Order(Action.INVOKE, "adder", "[1, 2]")


def bundle(version: int = 1, body: str = "    return sum(event)\n", key: bytes = PUBLISHER_KEY) -> bytes:
    manifest = (
        f'format = 1\n[function]\nname = "adder"\nversion = {version}\nentry = "main:handle"\n'
        "memory_mb = 150\ntimeout_ms = 60000\n"
    )
    code = f"def handle(event, context):\n{body}"
    return bundle_format.pack({"function.toml": manifest.encode(), "main.py": code.encode()}, key)


def outcomes(aggregator: FakeAggregator) -> list[str]:
    return [result.outcome for result in aggregator.results]


def test_order_with_other_content_than_the_ticket_signed_is_refused(
    aggregator: FakeAggregator, state: Path
) -> None:
    ticket = aggregator.give(1, CALL, bundle())
    forged = Order(Action.INVOKE, "adder", "[666]")
    aggregator.orders[1] = (wire.order_to_bytes(forged), aggregator.orders[1][1])
    assert wake(state, wake_bytes(ticket)) == 0
    assert aggregator.results == []
    assert counters(state) == {"wrong_digest": 1}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bundle(key=FOREIGN_KEY), Code.BUNDLE_PUBLISHER),
        (bundle()[:-9], Code.BUNDLE_MALFORMED),
        (bundle(body="    return 'x' * 300_000\n"), Code.INSTANCE_BAD_RESULT),
        (bundle(body="    return object()\n"), Code.INSTANCE_BAD_RESULT),
        (bundle(body="    while True: pass\n"), Code.INSTANCE_TIMEOUT),
        (bundle(body="    return bytearray(10**9) and 1\n"), Code.INSTANCE_MEMORY),
    ],
)
def test_what_goes_wrong_is_told_by_name(
    aggregator: FakeAggregator, state: Path, data: bytes, says: Code
) -> None:
    timeout_ms = 1000 if says is Code.INSTANCE_TIMEOUT else 0
    order = Order(Action.INVOKE, "adder", "null", timeout_ms=timeout_ms)
    assert wake(state, wake_bytes(aggregator.give(1, order, data))) == 0
    (result,) = aggregator.results
    assert (result.outcome, result.answer) == (says.value, "")
    assert result.detail
    assert counters(state) == {says.value: 1}
    assert ANSWER_BYTES_MAX < 300_000


def test_answer_is_delivered_once_after_the_aggregator_was_away(
    aggregator: FakeAggregator, state: Path
) -> None:
    """The function is not called again; the answer of the first call is what arrives."""
    body = "    import os\n    return os.urandom(8).hex()\n"
    ticket = aggregator.give(1, CALL, bundle(body=body))

    def refuse(call: str) -> None:
        if call == "put_order_result":
            raise PeerError(Code.INTERNAL, retry_after_ms=60_000)

    aggregator.before = refuse
    assert wake(state, wake_bytes(ticket)) == 0
    journal = Journal.open(state / "journal.db", read_only=True)
    (kept,) = journal.answers()
    assert journal.outbox_bytes() == len(kept.result)
    journal.close()
    aggregator.before = lambda _: None
    assert wake(state) == 0
    (result,) = aggregator.results
    assert result.answer == json.loads(kept.result)["answer"]
    assert wake(state) == 0
    assert wake(state, wake_bytes(ticket)) == 0, "the same ticket again"
    assert len(aggregator.results) == 1
    assert counters(state) == {"reported": 1, "duplicate": 1} or counters(state) == {
        "done": 1,
        "duplicate": 1,
    }


def test_lost_receipt_does_not_call_the_function_again(aggregator: FakeAggregator, state: Path) -> None:
    body = "    import os\n    return os.urandom(8).hex()\n"
    ticket, lost = aggregator.give(1, CALL, bundle(body=body)), [True]

    def lose(call: str) -> None:
        if call == "result_taken" and lost:
            lost.clear()
            raise PeerError(Code.BUSY, retry_after_ms=1)

    aggregator.before = lose
    assert wake(state, wake_bytes(ticket)) == 0
    first, second = aggregator.results
    assert first == second


def test_unreachable_aggregator_before_the_call_leaves_the_order_open(
    aggregator: FakeAggregator, state: Path
) -> None:
    ticket = aggregator.give(1, CALL, bundle())

    def busy(call: str) -> None:
        if call == "get_order":
            raise PeerError(Code.BUSY, retry_after_ms=60_000)

    aggregator.before = busy
    assert wake(state, wake_bytes(ticket)) == 0
    assert aggregator.results == []
    aggregator.before = lambda _: None
    assert wake(state) == 0
    assert [result.answer for result in aggregator.results] == ["3"]


def test_answer_that_does_not_fit_into_the_outbox_is_told_as_such(
    aggregator: FakeAggregator, state: Path
) -> None:
    with (state / "edge.toml").open("a") as file:
        file.write("[limits]\noutbox_mb = 1\n")
    journal = Journal.open(state / "journal.db")
    journal.store_answer(b"x" * 16, json.dumps("y" * (1 << 20)), 0, 0)
    journal.end(b"x" * 16, "done", "", 0)  # a journal that has held an answer frees its room
    assert journal.outbox_bytes() == 0
    journal.store_answer(
        b"z" * 16,
        '{"order_id": 9, "nonce": "'
        + "7a" * 16
        + '", "outcome": "done", "answer": "'
        + "y" * ((1 << 20) - 200)
        + '"}',
        2**50,
        0,
    )
    journal.close()
    assert wake(state, wake_bytes(aggregator.give(1, CALL, bundle()))) == 0
    assert Code.DISK_FULL.value in outcomes(aggregator)


def test_calls_from_afar_and_rollback_are_in_the_devices_own_list(
    aggregator: FakeAggregator, state: Path
) -> None:
    for number, version in ((1, 1), (2, 2)):
        assert (
            wake(state, wake_bytes(aggregator.give(number, Order(Action.INSTALL, "adder"), bundle(version))))
            == 0
        )
    assert wake(state, wake_bytes(aggregator.give(3, CALL, bundle(2)))) == 0
    assert wake(state, wake_bytes(aggregator.give(4, Order(Action.ROLL_BACK, "adder")))) == 0
    assert wake(state, wake_bytes(aggregator.give(5, Order(Action.ROLL_BACK, "adder")))) == 0
    assert wake(state, wake_bytes(aggregator.give(6, CALL, bundle(1)))) == 0
    assert [(r.outcome, r.version, r.answer) for r in aggregator.results] == [
        ("done", 1, ""),
        ("done", 2, ""),
        ("done", 2, "3"),
        ("done", 1, ""),
        ("wrong_state", 0, ""),
        ("done", 1, "3"),
    ]
    told = [(f.version, f.serves, f.given_up) for f in aggregator.statuses[-1].functions]
    assert told == [(2, False, True), (1, True, False)]
    functions = Functions(state)
    assert [(c.caller, c.kind, c.version, c.outcome) for c in functions.calls("adder")] == [
        ("fleet", "invoke", 1, "done"),
        ("fleet", "invoke", 2, "done"),
    ]
    functions.close()
