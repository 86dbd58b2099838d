"""The border: what is written can be read, and what is out of range is refused by field."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedless.protocol import messages as m
from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.v1 import core_pb2, enrollment_pb2, fleet_pb2, rounds_pb2

DIGEST = b"d" * 32
TASK = m.Task("mnist", DIGEST, 582_026, rule=m.ClientRule(m.Optimizer.ADAM, 1e-3, local_epochs=2))
HEADER = m.ReportHeader(5, m.Encoding.FLOAT32, 8, DIGEST, 500, {"loss": 12.5, "correct": 480.0})
METRICS = m.InvocationMetrics(5, "cold", {"total": 812.5}, 10, 20, 61.5, 44.0, 23.5, "reported")
STATUS = m.DeviceStatus("0.1", "LiteRT 2.3", "aarch64", 4, 512, 300, 10**9, 23.5, 1, {"duplicate": 2})
ENROLLMENT = m.Enrollment(
    fleet="acme",
    client_id="pi-1",
    chain_der=(b"leaf", b"authority"),
    endpoints=m.Endpoints(("a:1",), ("b:2",), ("c:3",)),
    ticket_keys=(m.SigningKey(b"k" * 16, b"p" * 32),),
    publisher_keys=(),
    policy=m.PolicyMessage(8, 6, (m.Mode.PAIRWISE,), trust="cheating-aggregator"),
    now_ms=1,
)


def test_every_message_survives_the_wire() -> None:
    assert wire.task_from_bytes(wire.task_to_bytes(TASK)) == TASK
    assert wire.report_header_from_pb(wire.report_header_to_pb(HEADER)) == HEADER
    assert wire.metrics_from_pb(wire.metrics_to_pb(METRICS)) == METRICS
    assert wire.status_from_pb(wire.status_to_pb(STATUS)) == STATUS
    assert wire.enrollment_from_pb(wire.enrollment_to_pb(ENROLLMENT)) == ENROLLMENT
    for reply in (
        m.Offer(b"task", 9, m.Encoding.RING16, 1_164_052, 1),
        m.Offer(b"task", 9, m.Encoding.RING32, 2_328_108, 1, round_open=b"M4"),
        m.Offer(b"", 9, m.Encoding.RING32, 0, 1, epoch_slots=16),
        m.NotNow("not_now", 60_000),
    ):
        assert wire.check_in_reply_from_pb(wire.check_in_reply_to_pb(reply)) == reply


def test_a_masked_step_survives_the_wire_and_an_over_long_one_is_refused() -> None:
    assert wire.epoch_step_from_pb(wire.epoch_step_to_pb(3, b"M1")) == (3, b"M1")
    assert wire.round_step_from_pb(wire.round_step_to_pb(7, b"M6")) == (7, b"M6")
    with pytest.raises(PeerError, match="at most"):
        wire.round_step_from_pb(rounds_pb2.RoundStep(round_id=1, message=bytes(m.STEP_BYTES_MAX + 1)))
    with pytest.raises(PeerError, match="epoch"):
        wire.epoch_step_from_pb(rounds_pb2.EpochStep(message=b"M1"))


def test_a_tasks_bytes_are_canonical() -> None:
    data = wire.task_to_bytes(TASK)
    value = json.loads(data)
    assert data == json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert value["bundle_digest"] == DIGEST.hex()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"parameters": 0}, "parameters"),
        ({"max_examples": 0}, "max_examples"),
        ({"holdout": 0.95}, "holdout"),
        ({"mode": "trust-me"}, "trust-me"),
        ({"surprise": 1}, "surprise"),
        ({"bundle_digest": "00"}, "bundle_digest"),
    ],
)
def test_a_task_that_cannot_be_obeyed_is_refused(change: dict[str, object], found: str) -> None:
    value = json.loads(wire.task_to_bytes(TASK)) | change
    with pytest.raises(PeerError, match=found) as error:
        wire.task_from_bytes(json.dumps(value).encode())
    assert error.value.code is Code.MALFORMED


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": -1.0},
        {"local_epochs": 0},
        {"optimizer": "magic"},
        {"momentum": float("nan")},
        {"x": 1},
    ],
)
def test_a_client_rule_out_of_range_is_refused(change: dict[str, object]) -> None:
    value = json.loads(wire.task_to_bytes(TASK))
    value["rule"] |= change
    with pytest.raises(PeerError):
        wire.task_from_bytes(json.dumps(value).encode())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_never_raised_through(data: bytes) -> None:
    for read in (wire.signed_ticket_from_bytes, wire.ticket_from_bytes, wire.task_from_bytes):
        with contextlib.suppress(PeerError):
            read(data)


def test_over_long_ticket_is_refused() -> None:
    data = core_pb2.SignedTicket(
        ticket=b"x" * 1025, key_id=b"k" * 16, signature=b"s" * 64
    ).SerializeToString()
    with pytest.raises(PeerError, match="found 1025"):
        wire.signed_ticket_from_bytes(data)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("round_id", 0, Code.MALFORMED),
        ("encoding", 9, Code.MALFORMED),
        ("sha256", b"short", Code.MALFORMED),
        ("examples", 2**41, Code.EXAMPLE_COUNT),
        ("length_bytes", 2**63, Code.MALFORMED),
    ],
)
def test_a_report_header_out_of_range_is_refused(field: str, value: object, code: Code) -> None:
    message = wire.report_header_to_pb(HEADER)
    setattr(message, field, value)
    with pytest.raises(PeerError) as error:
        wire.report_header_from_pb(message)
    assert error.value.code is code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_in_sums_and_timings_are_refused(value: float) -> None:
    with pytest.raises(PeerError) as error:
        wire.report_header_from_pb(wire.report_header_to_pb(replace(HEADER, sums={"loss": value})))
    assert error.value.code is Code.NOT_FINITE
    with pytest.raises(PeerError):
        wire.metrics_from_pb(wire.metrics_to_pb(replace(METRICS, timings_ms={"total": value})))


def test_too_many_sums_or_counters_are_refused() -> None:
    many = {f"s{i}": 1.0 for i in range(65)}
    with pytest.raises(PeerError, match="number of sums"):
        wire.report_header_from_pb(rounds_pb2.ReportHeader(round_id=1, sums=many))
    counters = {f"c{i}": 1 for i in range(300)}
    with pytest.raises(PeerError, match="number of counters"):
        wire.status_from_pb(fleet_pb2.DeviceStatus(refusals=counters))


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:70000", "h:x"])
def test_an_endpoint_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(PeerError, match="host:port"):
        wire.endpoints_from_pb(core_pb2.Endpoints(fleet=[address]))


def test_an_enrollment_request_never_shows_its_secret() -> None:
    request = wire.enroll_request_from_pb(enrollment_pb2.EnrollRequest(secret="s" * 26, csr_der=b"c"))
    assert "sss" not in repr(request)
    with pytest.raises(PeerError, match="length of the secret"):
        wire.enroll_request_from_pb(enrollment_pb2.EnrollRequest(csr_der=b"c"))


def test_a_refusal_travels_with_code_detail_remedy_and_retry() -> None:
    error = PeerError(Code.NOT_NOW, "The cohort is full.", fix="Wait.", retry_after_ms=1500)
    back = wire.error_from_bytes(wire.error_to_bytes(error))
    assert (back.code, back.detail, back.fix, back.retry_after_ms) == (
        Code.NOT_NOW,
        error.detail,
        "Wait.",
        1500,
    )
    newer = core_pb2.ErrorDetail(code="invented_later", detail="x").SerializeToString()
    assert wire.error_from_bytes(newer).code is Code.INTERNAL
