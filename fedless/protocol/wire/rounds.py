"""Check-ins, reports and metrics: protobuf <-> messages."""

from __future__ import annotations

import math
from dataclasses import asdict

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.wire.checks import TIME_MAX_MS, bounded, member, number, sized, within
from fedless.v1 import rounds_pb2

SUMS_MAX = 64
MARK_BYTES_MAX = 256
OPEN_BYTES_MAX = 64 * 1024
HEAD_BYTES_MAX = 32 * 1024


def check_in_from_pb(message: rounds_pb2.CheckInRequest) -> m.CheckIn:
    """A client's request to take part."""
    return m.CheckIn(
        within(message.round_id, 1, 2**63, "round_id"),
        sized(message.nonce, m.NONCE_BYTES, "nonce"),
        bounded(message.mark, MARK_BYTES_MAX, "mark"),
    )


def check_in_reply_to_pb(reply: m.Offer | m.NotNow) -> rounds_pb2.CheckInReply:
    """An offer or a "not now"."""
    if isinstance(reply, m.NotNow):
        return rounds_pb2.CheckInReply(
            admitted=False, reason=reply.reason, retry_after_ms=reply.retry_after_ms
        )
    return rounds_pb2.CheckInReply(
        admitted=True,
        task=reply.task,
        deadline_at_ms=reply.deadline_at_ms,
        encoding=reply.encoding,
        report_bytes=reply.report_bytes,
        now_ms=reply.now_ms,
        round_open=reply.round_open,
        epoch_slots=reply.epoch_slots,
    )


def check_in_reply_from_pb(message: rounds_pb2.CheckInReply) -> m.Offer | m.NotNow:
    """An offer or a "not now"; the task's digest is the participant's to check."""
    if not message.admitted:
        return m.NotNow(message.reason, within(message.retry_after_ms, 0, TIME_MAX_MS, "retry_after_ms"))
    return m.Offer(
        task=message.task,
        deadline_at_ms=within(message.deadline_at_ms, 1, TIME_MAX_MS, "deadline_at_ms"),
        encoding=member(m.Encoding, message.encoding, "encoding"),
        report_bytes=within(message.report_bytes, 0, 4 * m.PARAMETERS_MAX, "report_bytes"),
        now_ms=within(message.now_ms, 1, TIME_MAX_MS, "now_ms"),
        round_open=bounded(message.round_open, OPEN_BYTES_MAX, "round_open"),
        epoch_slots=within(message.epoch_slots, 0, 64, "epoch_slots"),
    )


def report_header_to_pb(header: m.ReportHeader) -> rounds_pb2.ReportHeader:
    """What is announced before a report's bytes."""
    return rounds_pb2.ReportHeader(
        round_id=header.round_id,
        encoding=header.encoding,
        length_bytes=header.length_bytes,
        sha256=header.sha256,
        examples=header.examples,
        sums=header.sums,
        masked=header.masked,
    )


def report_header_from_pb(message: rounds_pb2.ReportHeader) -> m.ReportHeader:
    """What a client announces; whether it fits the round is the round's to say."""
    within(len(message.sums), 0, SUMS_MAX, "number of sums")
    for name, value in message.sums.items():
        if not math.isfinite(value):
            raise PeerError(Code.NOT_FINITE, f"Expected a finite sum {name[:40]!r}, found {value}.")
    return m.ReportHeader(
        round_id=within(message.round_id, 1, 2**63, "round_id"),
        encoding=member(m.Encoding, message.encoding, "encoding"),
        length_bytes=within(message.length_bytes, 0, 4 * m.PARAMETERS_MAX, "length_bytes"),
        sha256=sized(message.sha256, m.DIGEST_BYTES, "sha256"),
        examples=within(message.examples, 0, m.EXAMPLES_MAX, "examples", Code.EXAMPLE_COUNT),
        sums=dict(message.sums),
        masked=bounded(message.masked, HEAD_BYTES_MAX, "masked"),
    )


def metrics_to_pb(value: m.InvocationMetrics) -> rounds_pb2.InvocationMetrics:
    """Timings and resources of one invocation."""
    return rounds_pb2.InvocationMetrics(**asdict(value))


def metrics_from_pb(message: rounds_pb2.InvocationMetrics) -> m.InvocationMetrics:
    """Timings and resources; non-finite numbers are refused since they would spoil a mean."""
    within(len(message.timings_ms), 0, SUMS_MAX, "number of timings")
    numbers = [
        *message.timings_ms.values(),
        message.peak_rss_mb,
        message.participant_peak_rss_mb,
        message.agent_rss_mb,
    ]
    for value in numbers:
        number(value, -1e12, 1e12, "timings and resources")
    return m.InvocationMetrics(
        round_id=within(message.round_id, 1, 2**63, "round_id"),
        start=message.start[:16],
        timings_ms=dict(message.timings_ms),
        bytes_down=within(message.bytes_down, 0, 2**53, "bytes_down"),
        bytes_up=within(message.bytes_up, 0, 2**53, "bytes_up"),
        peak_rss_mb=message.peak_rss_mb,
        participant_peak_rss_mb=message.participant_peak_rss_mb,
        agent_rss_mb=message.agent_rss_mb,
        outcome=message.outcome[:64],
    )


def epoch_step_to_pb(epoch: int, message: bytes) -> rounds_pb2.EpochStep:
    """One message of a key epoch's set-up, in the codec's bytes; empty: not yet there."""
    return rounds_pb2.EpochStep(epoch=epoch, message=message)


def epoch_step_from_pb(message: rounds_pb2.EpochStep) -> tuple[int, bytes]:
    """The key epoch's number and the message's bytes."""
    epoch = within(message.epoch, 1, 2**63, "epoch")
    return epoch, bounded(message.message, m.STEP_BYTES_MAX, "message")


def round_step_to_pb(round_id: int, message: bytes) -> rounds_pb2.RoundStep:
    """One message of a masked round's unmasking, in the codec's bytes; empty: not yet there."""
    return rounds_pb2.RoundStep(round_id=round_id, message=message)


def round_step_from_pb(message: rounds_pb2.RoundStep) -> tuple[int, bytes]:
    """The round's id and the message's bytes."""
    round_id = within(message.round_id, 1, 2**63, "round_id")
    return round_id, bounded(message.message, m.STEP_BYTES_MAX, "message")
