"""Tickets and tasks: protobuf and canonical JSON <-> messages."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from fedless.protocol import layout
from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.wire.checks import (
    TIME_MAX_MS,
    addresses,
    identifier,
    member,
    number,
    optional,
    parse,
    sized,
    within,
)
from fedless.v1 import core_pb2

LATER = frozenset(
    {"normalized", "fair_q", "fair_limit", "control", "example_clip", "example_noise", "personal_epochs"}
)
"""Fields of a client rule that the first version did not know."""
_DEFAULTS = m.ClientRule()


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
        control_digest=ticket.control_digest,
    )
    return message.SerializeToString(deterministic=True)


def ticket_from_bytes(data: bytes) -> m.Ticket:
    """The ticket in bytes whose signature was verified; raises TICKET_MALFORMED."""
    message = parse(core_pb2.Ticket, data, Code.TICKET_MALFORMED)
    try:
        return m.Ticket(
            fleet=identifier(message.fleet, "fleet"),
            client_id=identifier(message.client_id, "client_id"),
            task_digest=sized(message.task_digest, m.DIGEST_BYTES, "task_digest"),
            run_id=identifier(message.run_id, "run_id"),
            round_id=within(message.round_id, 1, 2**63, "round_id"),
            kind=member(m.Kind, message.kind, "kind"),
            bundle_digest=sized(message.bundle_digest, m.DIGEST_BYTES, "bundle_digest"),
            model_version=message.model_version,
            model_digest=sized(message.model_digest, m.DIGEST_BYTES, "model_digest"),
            endpoints=addresses(message.endpoints, "endpoints"),
            not_after_ms=within(message.not_after_ms, 0, TIME_MAX_MS, "not_after_ms"),
            nonce=sized(message.nonce, m.NONCE_BYTES, "nonce"),
            version=message.version,
            control_digest=optional(message.control_digest, m.DIGEST_BYTES, "control_digest"),
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
    message = parse(core_pb2.SignedTicket, data, Code.TICKET_MALFORMED)
    if not 1 <= len(message.ticket) <= m.TICKET_BYTES_MAX:
        detail = f"Expected a ticket of 1 to {m.TICKET_BYTES_MAX} bytes, found {len(message.ticket)}."
        raise PeerError(Code.TICKET_MALFORMED, detail)
    return m.SignedTicket(message.ticket, message.key_id, message.signature)


def task_to_bytes(task: m.Task) -> bytes:
    """A task's canonical JSON: sorted keys, no spaces; its SHA-256 is the task digest.

    What came to the rule later is left out where it is off, so that older clients take tasks that do not need it.
    """
    later = {name for name in LATER if getattr(task.rule, name) == getattr(_DEFAULTS, name)}
    rule = {name: value for name, value in asdict(task.rule).items() if name not in later}
    value = asdict(task) | {"bundle_digest": task.bundle_digest.hex(), "rule": rule}
    if not task.personal:
        del value["personal"]
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def task_from_bytes(data: bytes) -> m.Task:
    """The task in canonical JSON; unknown fields are refused, since they cannot be obeyed."""
    try:
        value: dict[str, Any] = json.loads(data)
        rule = m.ClientRule(**value.pop("rule"))
        task = m.Task(
            **{
                **value,
                "bundle_digest": sized(
                    bytes.fromhex(value["bundle_digest"]), m.DIGEST_BYTES, "bundle_digest"
                ),
                "mode": m.Mode(value["mode"]),
                "rule": _checked_rule(rule),
                "personal": tuple((int(offset), int(size)) for offset, size in value.get("personal", ())),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        detail = (
            f"Expected a task in JSON with the fields {', '.join(f.name for f in fields(m.Task))}; {error}."
        )
        raise PeerError(Code.MALFORMED, detail, fix="Update fedless on this client.") from error
    within(task.parameters, 1, m.PARAMETERS_MAX, "parameters")
    within(task.max_examples, 1, m.EXAMPLES_MAX, "max_examples")
    number(task.holdout, 0.0, 0.9, "holdout")
    if why := layout.complaint(task.layout):
        raise PeerError(Code.MALFORMED, f"The task's layout: {why}.")
    if task.rule.personal_epochs and not task.personal:
        raise PeerError(Code.MALFORMED, "rule.personal_epochs of a task without personal parameters.")
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
        "fair_q",
        "fair_limit",
        "example_clip",
        "example_noise",
    ):
        number(getattr(rule, name), 0.0, 1e6, f"rule.{name}")
    for name in ("normalized", "control"):
        if not isinstance(getattr(rule, name), bool):
            raise PeerError(Code.MALFORMED, f"Expected true or false in rule.{name}.")
    within(rule.local_epochs, 1, 100_000, "rule.local_epochs")
    within(rule.personal_epochs, 0, 100_000, "rule.personal_epochs")
    within(rule.max_steps, 0, 10**9, "rule.max_steps")
    within(rule.seed, 0, 2**63, "rule.seed")
    return m.ClientRule(**{**asdict(rule), "optimizer": m.Optimizer(rule.optimizer)})
