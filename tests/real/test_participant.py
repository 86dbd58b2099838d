"""The participant and a real instance against a fake aggregator over gRPC and mTLS: rounds, refusals, retries."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.functions import Functions
from edge_runtime.status import collect, lines
from edge_runtime.telling import today
from fedless.protocol.errors import Code
from fedless.protocol.messages import ClientRule, Kind, Mode, Ticket
from tests.edge_device import CLIENT, counters, wake
from tests.edge_fleet import FOREIGN_KEY, PARAMETERS, FakeAggregator, Fleet, now_ms, wake_bytes

pytestmark = pytest.mark.real


def test_a_round_is_trained_and_reported(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert here.accepted == 1
    delta = np.frombuffer(here.data, "<f4")
    assert delta.shape == (PARAMETERS,)
    assert np.isfinite(delta).all()
    assert np.abs(delta).max() > 0
    assert here.header is not None
    assert here.header.examples == 40
    assert counters(state) == {"reported": 1}
    assert list((state / "outbox").iterdir()) == []
    (metrics,) = aggregator.metrics
    assert metrics.outcome == "reported"
    assert metrics.start == "cold"
    phases = {"queue", "start", "check_in", "download", "first_step", "run", "report", "total"}
    phases |= {"instance_data", "instance_load", "instance_train"}
    assert phases <= set(metrics.timings_ms)
    assert metrics.bytes_up == 4 * PARAMETERS
    assert metrics.bytes_down == len(fleet.bundle) + len(fleet.model)
    assert metrics.agent_rss_mb == 21.5
    assert metrics.peak_rss_mb > 20
    (status,) = aggregator.statuses
    assert status.refusals == {"reported": 1}
    shown = "\n".join(lines(collect(state)))
    assert "round 1 (train): reported" in shown


def test_statistics_are_kept_on_the_device(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    functions = Functions(state)
    (call,) = functions.calls()
    assert (call.name, call.version, call.start, call.caller) == ("mnist-mlp", 1, "cold", "fleet")
    assert call.outcome == "reported"
    assert 0 < call.run_ms < call.total_ms
    assert functions.used_bytes(today()) >= 4 * PARAMETERS
    (version,) = functions.versions("mnist-mlp")
    assert version.model == hashlib.sha256(fleet.model).hexdigest()
    functions.close()


def test_a_device_that_may_not_train_says_why_and_until_when(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    (state / "trace.jsonl").write_text('{"at_ms": 0, "battery": 0.1, "mains": false}\n')
    with (state / "edge.toml").open("a") as file:
        file.write('[eligibility]\ntrace = "trace.jsonl"\n')
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert here.accepted == 0
    assert counters(state) == {"not_now": 1}
    assert aggregator.metrics[-1].outcome == "not_now"
    assert aggregator.statuses[-1].not_before_reason == "its battery is at 10%, under 30%"
    assert aggregator.statuses[-1].not_before_ms > now_ms()


def test_second_round_downloads_nothing_again(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    for round_id in (1, 2):
        ticket = fleet.ticket(CLIENT, round_id, task)
        aggregator.open(ticket, task)
        wake(state, wake_bytes(ticket))
    assert aggregator.metrics[1].bytes_down == 0
    assert aggregator.metrics[1].outcome == "reported"


def test_a_control_variate_is_kept_from_round_to_round(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """SCAFFOLD: the report's second half is -c - delta / (K eta); the device's own c_i adds these up."""
    task = fleet.task(rule=ClientRule(learning_rate=0.1, local_epochs=2, max_steps=3, control=True))
    control = np.full(PARAMETERS, 0.25, "<f4").tobytes()
    digest = hashlib.sha256(control).digest()
    aggregator.blobs[digest] = control
    changes = []
    for round_id, control_digest in ((1, b""), (2, digest)):
        ticket = fleet.ticket(CLIENT, round_id, task, control_digest=control_digest)
        here = aggregator.open(ticket, task, report_bytes=8 * PARAMETERS)
        assert wake(state, wake_bytes(ticket)) == 0
        delta, change = np.frombuffer(here.data, "<f4").reshape(2, PARAMETERS)
        expected = -delta / np.float32(0.3) - (0.25 if control_digest else 0.0)
        np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-6)
        changes.append(change)
    own = np.fromfile(state / "controls" / "run-1.2.f32", "<f4")
    np.testing.assert_array_equal(own, changes[0] + changes[1])
    assert len(list((state / "controls").iterdir())) == 1


def test_the_loss_before_training_weighs_the_update(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """q-FedAvg with q = 1: F times the delta, and h / L = |delta|^2 / eta + F."""
    rule = ClientRule(learning_rate=0.1, max_steps=3)
    found = []
    for round_id, fair in ((1, rule), (2, replace(rule, fair_q=1.0, fair_limit=100.0))):
        task = fleet.task(rule=fair)
        ticket = fleet.ticket(CLIENT, round_id, task)
        here = aggregator.open(ticket, task)
        assert wake(state, wake_bytes(ticket)) == 0
        assert here.header is not None
        found.append((np.frombuffer(here.data, "<f4"), here.header.sums))
    (delta, _), (weighed, sums) = found
    loss = float(np.linalg.norm(weighed) / np.linalg.norm(delta))
    assert 1.5 < loss < 3.5
    assert sums["fair_weight"] / 40 == pytest.approx(float(delta @ delta) / 0.1 + loss, rel=1e-3)


def test_evaluation_reports_sums_and_no_bytes(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task(holdout=0.25)
    ticket = fleet.ticket(CLIENT, 1, task, kind=Kind.EVALUATE)
    here = aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert here.header is not None
    assert here.header.length_bytes == 0
    assert 1 <= here.header.examples < 40
    assert set(here.header.sums) == {"loss", "correct"}
    assert counters(state) == {"reported": 1}
    (metrics,) = aggregator.metrics
    assert {"instance_data", "instance_load", "instance_evaluate"} <= set(metrics.timings_ms)


def test_more_examples_than_the_task_counts_are_counted_as_that_many(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    task = fleet.task(max_examples=10)
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    wake(state, wake_bytes(ticket))
    assert here.header is not None
    assert here.header.examples == 10


# -- attacks on the ticket


def test_replayed_ticket_is_refused(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    for _ in range(3):
        assert wake(state, wake_bytes(ticket)) == 0
    assert here.accepted == 1
    assert aggregator.calls.count("check_in") == 1
    assert counters(state) == {"reported": 1, "duplicate": 2}


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("expired", Code.TICKET_EXPIRED),
        ("forged", Code.TICKET_FORGED),
        ("unsigned", Code.TICKET_FORGED),
        ("foreign_client", Code.TICKET_FOREIGN),
        ("foreign_fleet", Code.TICKET_FOREIGN),
        ("unknown_key", Code.TICKET_UNKNOWN_KEY),
        ("garbage", Code.TICKET_MALFORMED),
        ("unknown_kind", Code.TICKET_MALFORMED),
    ],
)
def test_bad_ticket_is_refused_and_counted(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, attack: str, code: Code
) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, bad_wake(ticket, attack)) == 0
    assert counters(state) == {code.value: 1}
    # a key that it does not know may be a successor's: that is asked for, and the ticket refused all the same
    assert aggregator.calls == (["renew"] if code is Code.TICKET_UNKNOWN_KEY else [])


def bad_wake(ticket: Ticket, attack: str) -> bytes:
    forged = bytearray(wake_bytes(ticket))
    forged[-5] ^= 1  # in the signature, which comes last
    return {
        "expired": wake_bytes(replace(ticket, not_after_ms=now_ms() - 1)),
        "forged": bytes(forged),
        "unsigned": wake_bytes(ticket)[:-66],  # without the signature's field: tag, length, 64 bytes
        "foreign_client": wake_bytes(replace(ticket, client_id="device-2")),
        "foreign_fleet": wake_bytes(replace(ticket, fleet="others")),
        "unknown_key": wake_bytes(ticket, FOREIGN_KEY),
        "unknown_kind": wake_bytes(replace(ticket, kind=9)),  # type: ignore[arg-type]
        "garbage": b"\xff" * 64,
    }[attack]


def test_ticket_of_an_unknown_round_is_refused_and_counted(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    ticket = fleet.ticket(CLIENT, 77, fleet.task())
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {"unknown_round": 1}


def test_task_that_the_ticket_does_not_name_is_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    ticket = fleet.ticket(CLIENT, 1, fleet.task())
    aggregator.open(ticket, fleet.task(name="another"))
    wake(state, wake_bytes(ticket))
    assert counters(state) == {"wrong_digest": 1}
    assert aggregator.metrics[0].outcome == "wrong_digest"


def test_mode_that_the_policy_forbids_is_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    task = fleet.task(mode=Mode.PAIRWISE)
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    wake(state, wake_bytes(ticket))
    assert counters(state) == {"policy": 1}


def test_blob_with_another_digest_is_refused(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    swapped = bytearray(fleet.model)
    swapped[0] ^= 1
    aggregator.blobs[ticket.model_digest] = bytes(swapped)
    wake(state, wake_bytes(ticket))
    assert list((state / "cache").glob(ticket.model_digest.hex() + "*")) == []
    assert counters(state) == {"wrong_digest": 1}


def test_bundle_of_an_unknown_publisher_is_refused(
    aggregator: FakeAggregator, state: Path, fleet: Fleet
) -> None:
    foreign = Fleet(fleet.name)
    from fedless.protocol import bundle_format

    files = bundle_format.unpack(bundle_format.read_header(fleet.bundle).archive)
    foreign.bundle = bundle_format.pack(files, FOREIGN_KEY)
    digest = hashlib.sha256(foreign.bundle).digest()
    aggregator.blobs[digest] = foreign.bundle
    task = fleet.task(bundle_digest=digest)
    ticket = fleet.ticket(CLIENT, 1, task, bundle_digest=digest)
    aggregator.open(ticket, task)
    wake(state, wake_bytes(ticket))
    assert counters(state) == {"bundle_publisher": 1}
    assert not (state / "functions" / digest.hex()).exists()
