"""The border: protobuf <-> messages. Every length and range is checked here, once.

`x_to_pb` never fails on a valid message; `x_from_pb` raises `PeerError` MALFORMED (tickets:
TICKET_MALFORMED) and says which field was expected to be what. No other module of the protocol
knows protobuf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from google.protobuf.message import DecodeError

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.v1 import core_pb2, enrollment_pb2, fleet_pb2, rounds_pb2

TIME_MAX_MS = 2**53
SUMS_MAX = 64
ENDPOINTS_MAX = 8
KEYS_MAX = 16


# -- tickets


def ticket_to_bytes(ticket: m.Ticket) -> bytes:
    """A ticket's bytes, as they are signed and sent."""
    message = core_pb2.Ticket(
        version=ticket.version,
        fleet=ticket.fleet,
        client_id=ticket.client_id,
        task_digest=ticket.task_digest,
        run_id=ticket.run_id,
        round_id=ticket.round_id,
        kind=core_pb2.Kind.ValueType(ticket.kind),
        bundle_digest=ticket.bundle_digest,
        model_version=ticket.model_version,
        model_digest=ticket.model_digest,
        endpoints=ticket.endpoints,
        not_after_ms=ticket.not_after_ms,
        nonce=ticket.nonce,
    )
    return message.SerializeToString(deterministic=True)


def ticket_from_bytes(data: bytes) -> m.Ticket:
    """The ticket in bytes whose signature was verified; raises TICKET_MALFORMED."""
    message = _parse(core_pb2.Ticket, data, Code.TICKET_MALFORMED)
    try:
        return m.Ticket(
            fleet=_id(message.fleet, "fleet"),
            client_id=_id(message.client_id, "client_id"),
            task_digest=_sized(message.task_digest, m.DIGEST_BYTES, "task_digest"),
            run_id=_id(message.run_id, "run_id"),
            round_id=_range(message.round_id, 1, 2**63, "round_id"),
            kind=_enum(m.Kind, message.kind, "kind"),
            bundle_digest=_sized(message.bundle_digest, m.DIGEST_BYTES, "bundle_digest"),
            model_version=message.model_version,
            model_digest=_sized(message.model_digest, m.DIGEST_BYTES, "model_digest"),
            endpoints=_addresses(message.endpoints, "endpoints"),
            not_after_ms=_range(message.not_after_ms, 0, TIME_MAX_MS, "not_after_ms"),
            nonce=_sized(message.nonce, m.NONCE_BYTES, "nonce"),
            version=message.version,
        )
    except PeerError as error:
        raise PeerError(Code.TICKET_MALFORMED, error.detail) from error


def signed_ticket_to_bytes(signed: m.SignedTicket) -> bytes:
    """What travels over MQTT or as an invocation's payload (at most 1 KiB and the signature)."""
    return core_pb2.SignedTicket(
        ticket=signed.ticket, key_id=signed.key_id, signature=signed.signature
    ).SerializeToString(deterministic=True)


def signed_ticket_from_bytes(data: bytes) -> m.SignedTicket:
    """The parts of a wake-up; nothing in it is verified yet. Raises TICKET_MALFORMED."""
    message = _parse(core_pb2.SignedTicket, data, Code.TICKET_MALFORMED)
    if not 1 <= len(message.ticket) <= m.TICKET_BYTES_MAX:
        detail = f"Expected a ticket of 1 to {m.TICKET_BYTES_MAX} bytes, found {len(message.ticket)}."
        raise PeerError(Code.TICKET_MALFORMED, detail)
    return m.SignedTicket(message.ticket, message.key_id, message.signature)


# -- tasks


def task_to_bytes(task: m.Task) -> bytes:
    """A task's canonical JSON: sorted keys, no spaces; its SHA-256 is the task digest."""
    value = asdict(task) | {"bundle_digest": task.bundle_digest.hex()}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def task_from_bytes(data: bytes) -> m.Task:
    """The task in canonical JSON; unknown fields are refused, since they cannot be obeyed."""
    try:
        value: dict[str, Any] = json.loads(data)
        rule = m.ClientRule(**value.pop("rule"))
        task = m.Task(
            **{
                **value,
                "bundle_digest": _sized(
                    bytes.fromhex(value["bundle_digest"]), m.DIGEST_BYTES, "bundle_digest"
                ),
                "mode": m.Mode(value["mode"]),
                "rule": _checked_rule(rule),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        detail = (
            f"Expected a task in JSON with the fields {', '.join(f.name for f in fields(m.Task))}; {error}."
        )
        raise PeerError(Code.MALFORMED, detail, fix="Update fedless on this client.") from error
    _range(task.parameters, 1, m.PARAMETERS_MAX, "parameters")
    _range(task.max_examples, 1, m.EXAMPLES_MAX, "max_examples")
    _number(task.holdout, 0.0, 0.9, "holdout")
    return task


def _checked_rule(rule: m.ClientRule) -> m.ClientRule:
    for name in (
        "learning_rate",
        "momentum",
        "beta1",
        "beta2",
        "epsilon",
        "weight_decay",
        "clip_norm",
        "proximal_mu",
    ):
        _number(getattr(rule, name), 0.0, 1e6, f"rule.{name}")
    _range(rule.local_epochs, 1, 100_000, "rule.local_epochs")
    _range(rule.max_steps, 0, 10**9, "rule.max_steps")
    _range(rule.seed, 0, 2**63, "rule.seed")
    return m.ClientRule(**{**asdict(rule), "optimizer": m.Optimizer(rule.optimizer)})


# -- enrollment


def endpoints_to_pb(value: m.Endpoints) -> core_pb2.Endpoints:
    """Endpoints for Enroll, Renew and Info."""
    return core_pb2.Endpoints(fleet=value.fleet, mqtt=value.mqtt, enrollment=value.enrollment)


def endpoints_from_pb(message: core_pb2.Endpoints) -> m.Endpoints:
    """Endpoints with every address checked."""
    return m.Endpoints(
        _addresses(message.fleet, "endpoints.fleet"),
        _addresses(message.mqtt, "endpoints.mqtt"),
        _addresses(message.enrollment, "endpoints.enrollment"),
    )


def keys_to_pb(keys: tuple[m.SigningKey, ...]) -> list[core_pb2.SigningKey]:
    """Ticket or publisher keys."""
    return [core_pb2.SigningKey(key_id=key.key_id, public_key=key.public_key) for key in keys]


def keys_from_pb(keys: Any) -> tuple[m.SigningKey, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    """Ticket or publisher keys with their sizes checked."""
    _range(len(keys), 0, KEYS_MAX, "number of keys")
    return tuple(
        m.SigningKey(_sized(key.key_id, m.KEY_ID_BYTES, "key_id"), _sized(key.public_key, 32, "public_key"))
        for key in keys
    )


def policy_to_pb(policy: m.PolicyMessage) -> core_pb2.Policy:
    """A client policy for the wire."""
    return core_pb2.Policy(
        minimum_cohort=policy.minimum_cohort,
        minimum_threshold=policy.minimum_threshold,
        modes=[str(mode) for mode in policy.modes],
        count_functions=policy.count_functions,
        trust=policy.trust,
        helper_key_digest=policy.helper_key_digest,
    )


def policy_from_pb(message: core_pb2.Policy) -> m.PolicyMessage:
    """A client policy; modes that this version does not know are refused."""
    return m.PolicyMessage(
        minimum_cohort=message.minimum_cohort,
        minimum_threshold=message.minimum_threshold,
        modes=tuple(_enum(m.Mode, mode, "policy.modes") for mode in message.modes),
        count_functions=message.count_functions,
        trust=message.trust,
        helper_key_digest=_optional(message.helper_key_digest, m.DIGEST_BYTES, "policy.helper_key_digest"),
    )


def enroll_request_from_pb(message: enrollment_pb2.EnrollRequest) -> m.EnrollRequest:
    """A claim's secret and a request; the secret is never repeated in an error."""
    _range(len(message.secret), 1, 64, "length of the secret")
    _range(len(message.csr_der), 1, 16 * 1024, "length of csr_der")
    return m.EnrollRequest(message.secret, message.csr_der)


def enrollment_to_pb(value: m.Enrollment) -> enrollment_pb2.EnrollReply:
    """The authority's answer to a new client."""
    return enrollment_pb2.EnrollReply(
        fleet=value.fleet,
        client_id=value.client_id,
        chain_der=value.chain_der,
        endpoints=endpoints_to_pb(value.endpoints),
        ticket_keys=keys_to_pb(value.ticket_keys),
        publisher_keys=keys_to_pb(value.publisher_keys),
        policy=policy_to_pb(value.policy),
        now_ms=value.now_ms,
    )


def enrollment_from_pb(message: enrollment_pb2.EnrollReply) -> m.Enrollment:
    """The authority's answer; the chain itself is verified by `identity.verify_chain`."""
    _range(len(message.chain_der), 2, 4, "length of the chain")
    return m.Enrollment(
        fleet=_id(message.fleet, "fleet"),
        client_id=_id(message.client_id, "client_id"),
        chain_der=tuple(message.chain_der),
        endpoints=endpoints_from_pb(message.endpoints),
        ticket_keys=keys_from_pb(message.ticket_keys),
        publisher_keys=keys_from_pb(message.publisher_keys),
        policy=policy_from_pb(message.policy),
        now_ms=_range(message.now_ms, 1, TIME_MAX_MS, "now_ms"),
    )


# -- rounds


def check_in_from_pb(message: rounds_pb2.CheckInRequest) -> m.CheckIn:
    """A client's request to take part."""
    return m.CheckIn(
        _range(message.round_id, 1, 2**63, "round_id"), _sized(message.nonce, m.NONCE_BYTES, "nonce")
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
    )


def check_in_reply_from_pb(message: rounds_pb2.CheckInReply) -> m.Offer | m.NotNow:
    """An offer or a "not now"; the task's digest is the participant's to check."""
    if not message.admitted:
        return m.NotNow(message.reason, _range(message.retry_after_ms, 0, TIME_MAX_MS, "retry_after_ms"))
    return m.Offer(
        task=message.task,
        deadline_at_ms=_range(message.deadline_at_ms, 1, TIME_MAX_MS, "deadline_at_ms"),
        encoding=_enum(m.Encoding, message.encoding, "encoding"),
        report_bytes=_range(message.report_bytes, 0, 4 * m.PARAMETERS_MAX, "report_bytes"),
        now_ms=_range(message.now_ms, 1, TIME_MAX_MS, "now_ms"),
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
    )


def report_header_from_pb(message: rounds_pb2.ReportHeader) -> m.ReportHeader:
    """What a client announces; whether it fits the round is the round's to say."""
    _range(len(message.sums), 0, SUMS_MAX, "number of sums")
    for name, value in message.sums.items():
        if not math.isfinite(value):
            raise PeerError(Code.NOT_FINITE, f"Expected a finite sum {name[:40]!r}, found {value}.")
    return m.ReportHeader(
        round_id=_range(message.round_id, 1, 2**63, "round_id"),
        encoding=_enum(m.Encoding, message.encoding, "encoding"),
        length_bytes=_range(message.length_bytes, 0, 4 * m.PARAMETERS_MAX, "length_bytes"),
        sha256=_sized(message.sha256, m.DIGEST_BYTES, "sha256"),
        examples=_range(message.examples, 0, m.EXAMPLES_MAX, "examples", Code.EXAMPLE_COUNT),
        sums=dict(message.sums),
    )


def metrics_to_pb(value: m.InvocationMetrics) -> rounds_pb2.InvocationMetrics:
    """Timings and resources of one invocation."""
    return rounds_pb2.InvocationMetrics(**asdict(value))


def metrics_from_pb(message: rounds_pb2.InvocationMetrics) -> m.InvocationMetrics:
    """Timings and resources; non-finite numbers are refused since they would spoil a mean."""
    _range(len(message.timings_ms), 0, SUMS_MAX, "number of timings")
    numbers = [
        *message.timings_ms.values(),
        message.peak_rss_mb,
        message.participant_peak_rss_mb,
        message.agent_rss_mb,
    ]
    for value in numbers:
        _number(value, -1e12, 1e12, "timings and resources")
    return m.InvocationMetrics(
        round_id=_range(message.round_id, 1, 2**63, "round_id"),
        start=message.start[:16],
        timings_ms=dict(message.timings_ms),
        bytes_down=_range(message.bytes_down, 0, 2**53, "bytes_down"),
        bytes_up=_range(message.bytes_up, 0, 2**53, "bytes_up"),
        peak_rss_mb=message.peak_rss_mb,
        participant_peak_rss_mb=message.participant_peak_rss_mb,
        agent_rss_mb=message.agent_rss_mb,
        outcome=message.outcome[:64],
    )


def status_to_pb(value: m.DeviceStatus) -> fleet_pb2.DeviceStatus:
    """A device's profile."""
    return fleet_pb2.DeviceStatus(**asdict(value))


def status_from_pb(message: fleet_pb2.DeviceStatus) -> m.DeviceStatus:
    """A device's profile, with bounded texts and counters."""
    _range(len(message.refusals), 0, 256, "number of counters")
    values: dict[str, Any] = {f.name: getattr(message, f.name) for f in fields(m.DeviceStatus)}
    texts = {name: value[:128] for name, value in values.items() if isinstance(value, str)}
    return m.DeviceStatus(**{**values, **texts, "refusals": dict(message.refusals)})


# -- errors


def error_to_bytes(error: PeerError) -> bytes:
    """What the trailer `fedless-error-bin` carries."""
    return core_pb2.ErrorDetail(
        code=error.code.value, detail=error.detail, fix=error.fix, retry_after_ms=error.retry_after_ms or 0
    ).SerializeToString()


def error_from_bytes(data: bytes) -> PeerError:
    """The refusal in a trailer; an unreadable one is INTERNAL."""
    message = _parse(core_pb2.ErrorDetail, data, Code.INTERNAL)
    return PeerError(
        Code.of(message.code), message.detail, fix=message.fix, retry_after_ms=message.retry_after_ms or None
    )


# -- checks


def _parse(kind: Any, data: bytes, code: Code) -> Any:  # noqa: ANN401 - generated classes share no typed factory
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise PeerError(code, f"Expected a {kind.DESCRIPTOR.name} in protobuf.") from error


def _sized(value: bytes, size: int, name: str) -> bytes:
    if len(value) != size:
        raise PeerError(Code.MALFORMED, f"Expected {size} bytes in {name}, found {len(value)}.")
    return value


def _optional(value: bytes, size: int, name: str) -> bytes:
    return _sized(value, size, name) if value else b""


def _id(value: str, name: str) -> str:
    if not m.ID.fullmatch(value):
        raise PeerError(
            Code.MALFORMED, f"Expected an id of 1 to 64 characters of a-z, 0-9 and '-' in {name}."
        )
    return value


def _range(value: int, low: int, high: int, name: str, code: Code = Code.MALFORMED) -> int:
    if not low <= value <= high:
        raise PeerError(code, f"Expected {low} to {high} in {name}, found {str(value)[:40]}.")
    return value


def _number(value: float, low: float, high: float, name: str) -> float:
    if not low <= value <= high:
        raise PeerError(Code.MALFORMED, f"Expected {low:g} to {high:g} in {name}, found {str(value)[:40]}.")
    return value


def _enum(kind: Any, value: object, name: str) -> Any:  # noqa: ANN401 - the enum's own type
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise PeerError(
            Code.MALFORMED, f"Expected one of {known} in {name}, found {str(value)[:40]!r}."
        ) from error


def _addresses(values: Any, name: str) -> tuple[str, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    _range(len(values), 0, ENDPOINTS_MAX, f"number of {name}")
    for value in values:
        host, _, port = value.rpartition(":")
        if not host or len(value) > 262 or not port.isdigit() or not 0 < int(port) < 2**16:  # noqa: PLR2004
            raise PeerError(Code.MALFORMED, f"Expected host:port in {name}.")
    return tuple(values)


def counters_to_pb(counters: Mapping[Code, int]) -> dict[str, int]:
    """Refusals by code as the wire carries them."""
    return {code.value: count for code, count in counters.items()}
