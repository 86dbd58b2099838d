"""*Pure.* The protocol's messages as frozen dataclasses, with their ids and sizes.

Both sides of every exchange use these; `wire.py` turns them into protobuf and back and checks
every length and range there, once. Secure aggregation's own messages (M0 to M8) live beside
their automata in `secagg/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from fedless.protocol.client_rule import ClientRule as ClientRule  # noqa: PLC0414 - it is one of the messages
from fedless.protocol.client_rule import Optimizer as Optimizer  # noqa: PLC0414
from fedless.protocol.layout import Layout, Range
from fedless.protocol.trust import TrustList

PROTOCOL_VERSION = 1
DIGEST_BYTES = 32
NONCE_BYTES = 16
KEY_ID_BYTES = 16
SIGNATURE_BYTES = 64
TICKET_BYTES_MAX = 1024
CHUNK_BYTES = 512 * 1024
CHUNK_BYTES_MAX = 1024 * 1024
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
LONG_POLL_MS = 25_000
STEP_BYTES_MAX = 3 * 1024 * 1024
EXAMPLES_MAX = 2**40
PARAMETERS_MAX = 2**31
NOISE_MAX = 1e6
EVENT_BYTES_MAX = ANSWER_BYTES_MAX = 256 * 1024
ORDER_BYTES_MAX = EVENT_BYTES_MAX + 4096
FUNCTIONS_MAX = 64
DONE = "done"

ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
RESERVED_IDS = frozenset(
    {
        "admin",
        "aggregator",
        "announce",
        "authority",
        "broker",
        "device",
        "function",
        "helper",
        "operator",
        "root",
        "server",
    }
)


class Kind(IntEnum):
    """What a ticket asks for; the numbers are the wire's."""

    TRAIN = 1
    EVALUATE = 2
    UNMASK = 3
    EPOCH = 4
    INVOKE = 5


class Encoding(IntEnum):
    """How a report's payload is written; the numbers are the wire's."""

    FLOAT32 = 1
    RING32 = 2
    RING16 = 3

    @property
    def word_bytes(self) -> int:
        """Bytes of one coordinate."""
        return 2 if self is Encoding.RING16 else 4


class Mode(StrEnum):
    """How a round protects single updates."""

    PLAIN = "plain"
    PAIRWISE = "pairwise"
    HELPER = "helper"


@dataclass(frozen=True)
class Ticket:
    """The content of a wake-up. Made by the aggregator, verified by the participant.

    `control_digest` names the fleet's control variate, float32[P], of a task whose rule has `control`; empty: zeros.
    """

    fleet: str
    client_id: str
    task_digest: bytes
    run_id: str
    round_id: int
    kind: Kind
    bundle_digest: bytes
    model_version: int
    model_digest: bytes
    endpoints: tuple[str, ...]
    not_after_ms: int
    nonce: bytes
    version: int = PROTOCOL_VERSION
    control_digest: bytes = b""


@dataclass(frozen=True)
class SignedTicket:
    """A ticket's exact bytes with an Ed25519 signature over the ticket label and those bytes."""

    ticket: bytes
    key_id: bytes
    signature: bytes


@dataclass(frozen=True)
class SigningKey:
    """A raw Ed25519 public key (32 bytes) and its id (16 bytes)."""

    key_id: bytes
    public_key: bytes


@dataclass(frozen=True)
class Endpoints:
    """Where the services are, `host:port` each, the preferred one first."""

    fleet: tuple[str, ...]
    mqtt: tuple[str, ...]
    enrollment: tuple[str, ...]


@dataclass(frozen=True)
class PolicyMessage:
    """A client policy as it travels; 0, empty or None mean "not stated"."""

    minimum_cohort: int = 0
    minimum_threshold: int = 0
    modes: tuple[Mode, ...] = ()
    count_functions: bool = False
    trust: str = ""
    helper_key_digest: bytes = b""
    minimum_noise: float = 0.0
    helper_signing_key: bytes = b""


@dataclass(frozen=True)
class Task:
    """What to train, as clients see it; its canonical JSON's SHA-256 is the task digest.

    `parameters` is P, the length of the flat float32 vector. `max_examples` is W_max: a client
    with more examples counts as having this many. `holdout` is the fraction of a client's
    examples that is kept for evaluation and never trained on. `personal` are the ranges of the vector that each client
    trains and keeps for itself; an update has the others only.
    """

    name: str
    bundle_digest: bytes
    parameters: int
    mode: Mode = Mode.PLAIN
    rule: ClientRule = field(default_factory=ClientRule)
    max_examples: int = 1_000_000
    holdout: float = 0.0
    personal: tuple[Range, ...] = ()

    @property
    def layout(self) -> Layout:
        """Which elements of the vector are shared, and which are personal."""
        return Layout(self.parameters, self.personal)


class Action(StrEnum):
    """What an order asks of a device."""

    INVOKE = "invoke"
    INSTALL = "install"
    ROLL_BACK = "roll_back"
    RENEW = "renew"
    UPDATE = "update"


@dataclass(frozen=True)
class Order:
    """What a ticket of kind INVOKE asks for; its canonical JSON's SHA-256 is the ticket's task digest.

    `function` is empty for RENEW and UPDATE; the event of UPDATE names what to stage: `{"digest": 64 hex digits}`.
    `event` is a JSON text; `timeout_ms` 0 means the manifest's.
    """

    action: Action
    function: str = ""
    event: str = "null"
    timeout_ms: int = 0


@dataclass(frozen=True)
class OrderResult:
    """What came of an order: `outcome` is `done` or a code, `answer` a JSON text (of INVOKE; else empty).

    `version` is the function's that answered, `start` `cold` or `warm`; 0 and empty where nothing ran.
    """

    order_id: int
    nonce: bytes
    outcome: str
    detail: str = ""
    answer: str = ""
    version: int = 0
    start: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0


@dataclass(frozen=True)
class FunctionVersion:
    """One version of a function on a device; `digest` is the bundle's."""

    name: str
    version: int
    digest: bytes
    serves: bool
    given_up: bool


@dataclass(frozen=True)
class EnrollRequest:
    """A claim's secret and a PKCS#10 request."""

    secret: str = field(repr=False)
    csr_der: bytes


@dataclass(frozen=True)
class Enrollment:
    """What a client gets when it enrolls or renews; `chain_der` is leaf first, authority last.

    `trust_lists`: when it enrolls the newest of each kind, when it renews all that are newer than those it has.
    """

    fleet: str
    client_id: str
    chain_der: tuple[bytes, ...]
    endpoints: Endpoints
    ticket_keys: tuple[SigningKey, ...]
    publisher_keys: tuple[SigningKey, ...]
    policy: PolicyMessage
    now_ms: int
    trust_lists: tuple[TrustList, ...] = ()


@dataclass(frozen=True)
class CheckIn:
    """A client asks to take part in the round that its ticket named.

    `mark` is `secagg.state.Mark` in its codec's bytes; empty where the client has no key state.
    """

    round_id: int
    nonce: bytes
    mark: bytes = b""


@dataclass(frozen=True)
class Offer:
    """The client is in: what to do until when. `report_bytes` is 0 for an evaluation.

    Masked rounds bring M4 in `round_open` (`RoundOpen` or `HelperOpen`, codec); a ticket of kind
    EPOCH brings the number of slots, and its round id is the key epoch's number.
    """

    task: bytes
    deadline_at_ms: int
    encoding: Encoding
    report_bytes: int
    now_ms: int
    round_open: bytes = b""
    epoch_slots: int = 0


@dataclass(frozen=True)
class NotNow:
    """The client is not needed; `retry_after_ms` 0 means not in this round."""

    reason: str
    retry_after_ms: int


@dataclass(frozen=True)
class ReportHeader:
    """What a report is, before its bytes: length and SHA-256 of the payload.

    `examples` and `sums` (named sums over the examples, such as `loss` and `correct`) are
    filled in plain rounds and evaluations only; `masked` is the signed head of a masked report
    (`MaskedReport` or `HelperReport`, codec).
    """

    round_id: int
    encoding: Encoding
    length_bytes: int
    sha256: bytes
    examples: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    masked: bytes = b""


@dataclass(frozen=True)
class InvocationMetrics:
    """Timings and resources of one invocation; `outcome` is `reported` or a code."""

    round_id: int
    start: str
    timings_ms: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    peak_rss_mb: float
    participant_peak_rss_mb: float
    agent_rss_mb: float
    outcome: str


@dataclass(frozen=True)
class DeviceStatus:
    """A device's profile and present state; see fleet.proto for each field's unit."""

    runtime_version: str
    tflite_runtime: str
    architecture: str
    cores: int
    memory_mb: int
    memory_available_mb: int
    disk_free_bytes: int
    agent_rss_mb: float
    clock_ms: int
    refusals: Mapping[str, int] = field(default_factory=dict)
    aes_mb_per_s: float = 0.0
    chacha_mb_per_s: float = 0.0
    power: str = ""
    temperature_c: float = 0.0
    not_before_ms: int = 0
    not_before_reason: str = ""
    functions: tuple[FunctionVersion, ...] = ()
    trusts: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    issued_by: str = ""
