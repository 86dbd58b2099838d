"""*Pure.* What an invocation of a cloud function carries, what the function answers, and what it is deployed with.

JSON, since every platform takes it. The payload holds a signed ticket and a claim that is good once and until
the round's deadline; the deployment holds public keys and no secret; the answer holds figures and no update:
the report travels over gRPC. Written by adapters and the console, read by `cloud_adapters.handlers`, and back.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedless.protocol.crypto import key_id
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import check_id
from fedless.protocol.messages import Mode, PolicyMessage, SigningKey

PAYLOAD_VERSION = 1
PAYLOAD_BYTES_MAX = 8 * 1024
ANSWER_BYTES_MAX = 64 * 1024
REPORTED = "reported"
REPLIED = "replied"
_DETAIL_MAX = 500


@dataclass(frozen=True)
class Payload:
    """The aggregator to the function: `ticket` is a `SignedTicket` in the wire's bytes, `claim` a claim's text."""

    ticket: bytes
    claim: str = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """The function to its invoker. `outcome` is `reported` or a code's value; a helper's is `replied`, with its reply.

    `start` is `cold` for the first invocation of its process, else `warm`; times are ms of the function's own
    clock, `import_ms` from the start of its process to its first line that can work.
    """

    outcome: str
    detail: str = ""
    start: str = "cold"
    total_ms: float = 0.0
    import_ms: float = 0.0
    peak_rss_mb: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    reply: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Deployment:
    """What a function is deployed with: whose fleet it serves, whom it believes, where its data is.

    `authority_pem` is the fleet authority's certificate; `data` has tables as `[data.NAME]` of edge.toml, with a path
    or the URL of an object; `memory_mb` 0: as the bundle says. `states` is the URL of a folder in an object store,
    where a training that is longer than the platform's time limit is kept until the next invocation (empty: nowhere).
    """

    fleet: str
    client_id: str
    authority_pem: str
    ticket_keys: tuple[SigningKey, ...]
    publisher_keys: tuple[SigningKey, ...]
    policy: PolicyMessage
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    memory_mb: int = 0
    threads: int = 1
    states: str = ""


def payload_to_json(payload: Payload) -> bytes:
    """Invoker: the payload's bytes, at most 8 KiB."""
    ticket = base64.b64encode(payload.ticket).decode()
    return json.dumps({"fedless": PAYLOAD_VERSION, "ticket": ticket, "claim": payload.claim}).encode()


def payload_from_json(data: bytes | str | Mapping[str, Any]) -> Payload:
    """Function: the payload in what came. Raises `PeerError(MALFORMED)`, which never repeats it."""
    if not isinstance(data, Mapping) and len(data) > PAYLOAD_BYTES_MAX:
        raise PeerError(Code.MALFORMED, f"A payload of {len(data)} bytes; at most {PAYLOAD_BYTES_MAX}.")
    try:
        values = data if isinstance(data, Mapping) else json.loads(data)
        version, ticket, claim = (values[name] for name in ("fedless", "ticket", "claim"))
        if version != PAYLOAD_VERSION:
            raise PeerError(
                Code.MALFORMED,
                f"Expected payload version {PAYLOAD_VERSION}, found {str(version)[:20]}.",
                fix="Deploy the function again with the aggregator's version of fedless.",
            )
        raw = base64.b64decode(ticket, validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        detail = "Expected a JSON object with fedless, ticket and claim."
        raise PeerError(Code.MALFORMED, detail) from error
    if not isinstance(claim, str) or len(raw) + len(claim) > PAYLOAD_BYTES_MAX:
        raise PeerError(Code.MALFORMED, "Expected a claim as text.")
    return Payload(raw, claim)


def call_to_json(call: bytes) -> bytes:
    """Aggregator to a helper that is a function: a signed call (`secagg.calls`) as a payload."""
    return json.dumps({"fedless": PAYLOAD_VERSION, "call": base64.b64encode(call).decode()}).encode()


def call_from_json(data: bytes | str | Mapping[str, Any]) -> bytes:
    """Helper: the signed call in what came. Raises `PeerError(MALFORMED)`, which never repeats it."""
    try:
        values = data if isinstance(data, Mapping) else json.loads(data)
        if values["fedless"] == PAYLOAD_VERSION:
            return base64.b64decode(values["call"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        detail = "Expected a JSON object with fedless and call."
        raise PeerError(Code.MALFORMED, detail) from error
    raise PeerError(
        Code.MALFORMED, f"Expected a call of version {PAYLOAD_VERSION}.",
        fix="Deploy the helper again with the aggregator's version of fedless.",
    )  # fmt: skip


def answer_to_values(answer: Answer) -> dict[str, Any]:
    """Function: the answer as JSON values."""
    values = {"fedless": PAYLOAD_VERSION, **answer.__dict__, "detail": answer.detail[:_DETAIL_MAX]}
    del values["reply"]
    return {**values, "reply": base64.b64encode(answer.reply).decode()} if answer.reply else values


def answer_from_values(values: object) -> Answer:
    """Invoker: the answer in JSON values. Raises `PeerError(PLATFORM_ANSWER)`, which never repeats them."""
    if not isinstance(values, Mapping) or "outcome" not in values:
        raise PeerError(Code.PLATFORM_ANSWER, "Expected a fedless function's answer, found other JSON.")
    if values.get("fedless") != PAYLOAD_VERSION:
        raise PeerError(
            Code.PLATFORM_ANSWER,
            f"Expected an answer of version {PAYLOAD_VERSION}, found {str(values.get('fedless'))[:20]}.",
            fix="Deploy the function again with the aggregator's version of fedless.",
        )
    outcome = values["outcome"]
    if outcome not in (REPORTED, REPLIED):
        outcome = Code.of(str(outcome)).value
    numbers = ("total_ms", "import_ms", "peak_rss_mb", "bytes_up", "bytes_down")
    try:
        figures = {name: float(values.get(name, 0)) for name in numbers}
        reply = base64.b64decode(values.get("reply", ""), validate=True)
    except (TypeError, ValueError) as error:
        detail = "A figure in the answer is no number, or its reply no base64."
        raise PeerError(Code.PLATFORM_ANSWER, detail) from error
    return Answer(
        outcome=outcome,
        detail=str(values.get("detail", ""))[:_DETAIL_MAX],
        start="warm" if values.get("start") == "warm" else "cold",
        total_ms=figures["total_ms"],
        import_ms=figures["import_ms"],
        peak_rss_mb=figures["peak_rss_mb"],
        bytes_up=int(figures["bytes_up"]),
        bytes_down=int(figures["bytes_down"]),
        reply=reply,
    )


def deployment_to_json(deployment: Deployment) -> str:
    """Console: the deployment as a file's text; it holds no secret."""
    policy = deployment.policy
    values = {
        "fleet": deployment.fleet,
        "client_id": deployment.client_id,
        "authority_pem": deployment.authority_pem,
        "ticket_keys": [key.public_key.hex() for key in deployment.ticket_keys],
        "publisher_keys": [key.public_key.hex() for key in deployment.publisher_keys],
        "policy": {
            "minimum_cohort": policy.minimum_cohort,
            "minimum_threshold": policy.minimum_threshold,
            "modes": [str(mode) for mode in policy.modes],
            "count_functions": policy.count_functions,
            "trust": policy.trust,
            "helper_key_digest": policy.helper_key_digest.hex(),
        },
        "data": deployment.data,
        "memory_mb": deployment.memory_mb,
        "threads": deployment.threads,
        **({"states": deployment.states} if deployment.states else {}),
    }
    return json.dumps(values, indent=1)


def deployment_from_json(text: str) -> Deployment:
    """Function: what it is deployed with. Raises `LocalError(CONFIG_INVALID)`."""
    try:
        values = json.loads(text)
        policy = dict(values["policy"])
        policy["modes"] = tuple(Mode(mode) for mode in policy.get("modes", ()))
        policy["helper_key_digest"] = bytes.fromhex(policy.get("helper_key_digest", ""))
        data = {str(name): dict(table) for name, table in values.get("data", {}).items()}
        return Deployment(
            fleet=check_id(values["fleet"], "fleet name"),
            client_id=check_id(values["client_id"]),
            authority_pem=str(values["authority_pem"]),
            ticket_keys=_keys(values["ticket_keys"]),
            publisher_keys=_keys(values["publisher_keys"]),
            policy=PolicyMessage(**policy),
            data=data,
            memory_mb=int(values.get("memory_mb", 0)),
            threads=int(values.get("threads", 1)),
            states=str(values.get("states", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, PeerError) as error:
        raise LocalError(
            Code.CONFIG_INVALID,
            f"The deployment of this function cannot be read ({type(error).__name__}: {error}).",
            fix="Make it again with `fedless fleet add-function`, and package the function with it.",
        ) from error


def _keys(values: list[str]) -> tuple[SigningKey, ...]:
    raws = [bytes.fromhex(value) for value in values]
    return tuple(SigningKey(key_id(raw), raw) for raw in raws)
