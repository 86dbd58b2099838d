"""Enrollment, device status and refusals: protobuf <-> messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.trust import HELPER_MEMBER_BYTES, LISTS_MAX, MEMBERS_MAX, TrustKind, TrustList
from fedless.protocol.wire.checks import (
    TIME_MAX_MS,
    addresses,
    bounded,
    identifier,
    member,
    number,
    optional,
    parse,
    sized,
    within,
)
from fedless.v1 import core_pb2, enrollment_pb2, fleet_pb2

KEYS_MAX = 16
CERTIFICATE_BYTES_MAX, SIGNATURE_BYTES_MAX = 16 * 1024, 128
NUMBER_MAX = 2**53
TRUSTS_MAX = 64


def endpoints_to_pb(value: m.Endpoints) -> core_pb2.Endpoints:
    """Endpoints for Enroll, Renew and Info."""
    return core_pb2.Endpoints(fleet=value.fleet, mqtt=value.mqtt, enrollment=value.enrollment)


def endpoints_from_pb(message: core_pb2.Endpoints) -> m.Endpoints:
    """Endpoints with every address checked."""
    return m.Endpoints(
        addresses(message.fleet, "endpoints.fleet"),
        addresses(message.mqtt, "endpoints.mqtt"),
        addresses(message.enrollment, "endpoints.enrollment"),
    )


def keys_to_pb(keys: tuple[m.SigningKey, ...]) -> list[core_pb2.SigningKey]:
    """Ticket or publisher keys."""
    return [core_pb2.SigningKey(key_id=key.key_id, public_key=key.public_key) for key in keys]


def keys_from_pb(keys: Any) -> tuple[m.SigningKey, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    """Ticket or publisher keys with their sizes checked."""
    within(len(keys), 0, KEYS_MAX, "number of keys")
    return tuple(
        m.SigningKey(sized(key.key_id, m.KEY_ID_BYTES, "key_id"), sized(key.public_key, 32, "public_key"))
        for key in keys
    )


def trust_lists_to_pb(lists: Iterable[TrustList]) -> list[core_pb2.TrustList]:
    """Signed lists of whom to trust."""
    return [
        core_pb2.TrustList(
            kind=each.kind.value, number=each.number, members=each.members, signed_by=each.signed_by,
            signature=each.signature,
        )
        for each in lists
    ]  # fmt: skip


def trust_lists_from_pb(lists: Any) -> tuple[TrustList, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    """Signed lists with their sizes checked; those of a kind that this version does not know are passed over."""
    within(len(lists), 0, LISTS_MAX, "number of trust lists")
    known = {kind.value: kind for kind in TrustKind}
    return tuple(_trust_list(each, known[each.kind]) for each in lists if each.kind in known)


def _trust_list(each: core_pb2.TrustList, kind: TrustKind) -> TrustList:
    within(len(each.members), 1, MEMBERS_MAX, "number of members of a trust list")
    for member_bytes in each.members:
        if kind is TrustKind.AUTHORITY:
            bounded(member_bytes, CERTIFICATE_BYTES_MAX, "an authority of a trust list")
        else:
            size = HELPER_MEMBER_BYTES if kind is TrustKind.HELPER else 32
            sized(member_bytes, size, "a key of a trust list")
    return TrustList(
        kind,
        within(each.number, 1, NUMBER_MAX, "number of a trust list"),
        tuple(each.members),
        sized(each.signed_by, m.KEY_ID_BYTES, "signed_by"),
        bounded(each.signature, SIGNATURE_BYTES_MAX, "signature of a trust list"),
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
        helper_signing_key=policy.helper_signing_key,
        minimum_noise=policy.minimum_noise,
    )


def policy_from_pb(message: core_pb2.Policy) -> m.PolicyMessage:
    """A client policy; modes that this version does not know are refused."""
    return m.PolicyMessage(
        minimum_cohort=message.minimum_cohort,
        minimum_threshold=message.minimum_threshold,
        modes=tuple(member(m.Mode, mode, "policy.modes") for mode in message.modes),
        count_functions=message.count_functions,
        trust=message.trust,
        helper_key_digest=optional(message.helper_key_digest, m.DIGEST_BYTES, "policy.helper_key_digest"),
        helper_signing_key=optional(message.helper_signing_key, 32, "policy.helper_signing_key"),
        minimum_noise=number(message.minimum_noise, 0.0, m.NOISE_MAX, "policy.minimum_noise"),
    )


def enroll_request_from_pb(message: enrollment_pb2.EnrollRequest) -> m.EnrollRequest:
    """A claim's secret and a request; the secret is never repeated in an error."""
    within(len(message.secret), 1, 64, "length of the secret")
    within(len(message.csr_der), 1, 16 * 1024, "length of csr_der")
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
        trust_lists=trust_lists_to_pb(value.trust_lists),
    )


def enrollment_from_pb(message: enrollment_pb2.EnrollReply) -> m.Enrollment:
    """The authority's answer; the chain itself is verified by `identity.verify_chain`."""
    within(len(message.chain_der), 2, 4, "length of the chain")
    return m.Enrollment(
        fleet=identifier(message.fleet, "fleet"),
        client_id=identifier(message.client_id, "client_id"),
        chain_der=tuple(message.chain_der),
        endpoints=endpoints_from_pb(message.endpoints),
        ticket_keys=keys_from_pb(message.ticket_keys),
        publisher_keys=keys_from_pb(message.publisher_keys),
        policy=policy_from_pb(message.policy),
        now_ms=within(message.now_ms, 1, TIME_MAX_MS, "now_ms"),
        trust_lists=trust_lists_from_pb(message.trust_lists),
    )


def status_to_pb(value: m.DeviceStatus) -> fleet_pb2.DeviceStatus:
    """A device's profile."""
    return fleet_pb2.DeviceStatus(**asdict(value))


def status_from_pb(message: fleet_pb2.DeviceStatus) -> m.DeviceStatus:
    """A device's profile, with bounded texts and counters."""
    within(len(message.refusals), 0, 256, "number of counters")
    values: dict[str, Any] = {f.name: getattr(message, f.name) for f in fields(m.DeviceStatus)}
    texts = {name: value[:128] for name, value in values.items() if isinstance(value, str)}
    lists = {
        "functions": _functions(message.functions),
        "trusts": tuple(text[:64] for text in message.trusts[:TRUSTS_MAX]),
        "endpoints": addresses(message.endpoints, "endpoints"),
    }
    return m.DeviceStatus(**{**values, **texts, **lists, "refusals": dict(message.refusals)})


def _functions(told: Any) -> tuple[m.FunctionVersion, ...]:  # noqa: ANN401 - protobuf's repeated container has no public type
    within(len(told), 0, m.FUNCTIONS_MAX, "number of functions")
    return tuple(
        m.FunctionVersion(
            identifier(item.name, "functions.name"),
            item.version,
            sized(item.digest, m.DIGEST_BYTES, "functions.digest"),
            item.serves,
            item.given_up,
        )
        for item in told
    )


def error_to_bytes(error: PeerError) -> bytes:
    """What the trailer `fedless-error-bin` carries."""
    return core_pb2.ErrorDetail(
        code=error.code.value, detail=error.detail, fix=error.fix, retry_after_ms=error.retry_after_ms or 0
    ).SerializeToString()


def error_from_bytes(data: bytes) -> PeerError:
    """The refusal in a trailer; an unreadable one is INTERNAL."""
    message = parse(core_pb2.ErrorDetail, data, Code.INTERNAL)
    return PeerError(
        Code.of(message.code), message.detail, fix=message.fix, retry_after_ms=message.retry_after_ms or None
    )
