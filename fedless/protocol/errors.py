"""*Pure.* The error tree, and one `Code` for every way to say no.

Every refusal, on whichever side it is made, carries a `Code`. A code has exactly one gRPC
status, one counter (its own value, in metrics and in `status`) and one sentence for people.
`PeerError` is the other party's fault, `LocalError` is our own: the first is counted and the
round goes on, the second stops the program with a message. No error ever holds a key, a share,
a weight, a claim or a ticket.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Meaning:
    """What one code means: its gRPC status by name, and one sentence for people."""

    status: str
    sentence: str


class Code(Enum):
    """Every reason to refuse, by name. The value is the counter's name and travels on the wire."""

    # -- who is calling
    NO_CERTIFICATE = "no_certificate"
    FOREIGN_CERTIFICATE = "foreign_certificate"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    WRONG_ROLE = "wrong_role"
    RESERVED_NAME = "reserved_name"
    BAD_CSR = "bad_csr"
    # -- claims
    CLAIM_MALFORMED = "claim_malformed"
    CLAIM_UNKNOWN = "claim_unknown"
    CLAIM_USED = "claim_used"
    CLAIM_EXPIRED = "claim_expired"
    CLAIM_FOREIGN = "claim_foreign"
    # -- tickets
    TICKET_MALFORMED = "ticket_malformed"
    TICKET_FORGED = "ticket_forged"
    TICKET_UNKNOWN_KEY = "ticket_unknown_key"
    TICKET_FOREIGN = "ticket_foreign"
    TICKET_EXPIRED = "ticket_expired"
    TICKET_NOT_ALLOWED = "ticket_not_allowed"
    DUPLICATE = "duplicate"
    # -- rounds
    UNKNOWN_RUN = "unknown_run"
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_ROUND = "unknown_round"
    UNKNOWN_CLIENT = "unknown_client"
    ROUND_CLOSED = "round_closed"
    NOT_IN_COHORT = "not_in_cohort"
    NOT_NOW = "not_now"
    ALREADY_REPORTED = "already_reported"
    CONFLICTING_REPEAT = "conflicting_repeat"
    WRONG_STATE = "wrong_state"
    # -- uploads and downloads
    UNKNOWN_BLOB = "unknown_blob"
    WRONG_OFFSET = "wrong_offset"
    WRONG_LENGTH = "wrong_length"
    WRONG_DIGEST = "wrong_digest"
    WRONG_ENCODING = "wrong_encoding"
    NOT_FINITE = "not_finite"
    EXAMPLE_COUNT = "example_count"
    OUT_OF_RANGE = "out_of_range"
    MALFORMED = "malformed"
    # -- functions and bundles
    BUNDLE_MALFORMED = "bundle_malformed"
    BUNDLE_DIGEST = "bundle_digest"
    BUNDLE_FORGED = "bundle_forged"
    BUNDLE_PUBLISHER = "bundle_publisher"
    BUNDLE_PATH = "bundle_path"
    BUNDLE_TOO_LARGE = "bundle_too_large"
    BUNDLE_OLDER = "bundle_older"
    BUNDLE_RUNTIME = "bundle_runtime"
    MANIFEST_INVALID = "manifest_invalid"
    MODEL_NOT_PORTABLE = "model_not_portable"
    # -- data on the device
    DATA_MISSING = "data_missing"
    DATA_UNREADABLE = "data_unreadable"
    DATA_SHAPE = "data_shape"
    DATA_DTYPE = "data_dtype"
    DATA_EMPTY = "data_empty"
    DATA_NOT_FINITE = "data_not_finite"
    DATA_RANGE = "data_range"
    # -- function instances
    INSTANCE_FAILED = "instance_failed"
    INSTANCE_TIMEOUT = "instance_timeout"
    INSTANCE_MEMORY = "instance_memory"
    INSTANCE_BAD_RESULT = "instance_bad_result"
    UNFINISHED = "unfinished"
    QUEUE_FULL = "queue_full"
    CALLER_REFUSED = "caller_refused"
    # -- secure aggregation
    POLICY = "policy"
    BAD_SIGNATURE = "bad_signature"
    TRUST_OLDER = "trust_older"
    BAD_POINT = "bad_point"
    BAD_BOX = "bad_box"
    BAD_ROSTER = "bad_roster"
    BAD_THRESHOLD = "bad_threshold"
    BAD_BITMAP = "bad_bitmap"
    BAD_SHARE = "bad_share"
    BAD_CONTEXT = "bad_context"
    EPOCH_STALE = "epoch_stale"
    SLOT_USED = "slot_used"
    SLOT_CLOSED = "slot_closed"
    MODEL_REPEATED = "model_repeated"
    STATE_OLDER = "state_older"
    TWO_BITMAPS = "two_bitmaps"
    TOO_FEW = "too_few"
    SEED_REPEATED = "seed_repeated"
    HELPER_KEY = "helper_key"
    CALL_EXPIRED = "call_expired"
    CALL_REPEATED = "call_repeated"
    RING_OVERFLOW = "ring_overflow"
    PRIVACY_BUDGET = "privacy_budget"
    # -- cloud functions
    FUNCTION_UNKNOWN = "function_unknown"
    FUNCTION_LIMIT = "function_limit"
    FUNCTION_FAILED = "function_failed"
    PLATFORM_UNREACHABLE = "platform_unreachable"
    PLATFORM_DENIED = "platform_denied"
    PLATFORM_BUSY = "platform_busy"
    PLATFORM_ANSWER = "platform_answer"
    PLATFORM_TIMEOUT = "platform_timeout"
    # -- this machine
    CONFIG_INVALID = "config_invalid"
    STATE_LOCKED = "state_locked"
    STATE_MISSING = "state_missing"
    STATE_EXISTS = "state_exists"
    STATE_CORRUPT = "state_corrupt"
    DISK_FULL = "disk_full"
    STORE_UNREACHABLE = "store_unreachable"
    CLOCK_WRONG = "clock_wrong"
    PORT_IN_USE = "port_in_use"
    NOT_INSTALLED = "not_installed"
    BROKER_UNREACHABLE = "broker_unreachable"
    AGGREGATOR_UNREACHABLE = "aggregator_unreachable"
    HELPER_UNREACHABLE = "helper_unreachable"
    BUSY = "busy"
    INTERNAL = "internal"

    @property
    def status(self) -> str:
        """The name of the gRPC status that carries this code."""
        return MEANINGS[self].status

    @property
    def sentence(self) -> str:
        """One sentence for people; it names no value."""
        return MEANINGS[self].sentence

    @classmethod
    def of(cls, value: str) -> Code:
        """The code with this wire value; `INTERNAL` for one that a newer peer invented."""
        try:
            return cls(value)
        except ValueError:
            return cls.INTERNAL


_DENIED, _AUTH, _ARG = "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT"
_PRE, _MISSING, _EXISTS = "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"
_FULL, _LATER, _OWN, _RANGE = "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "OUT_OF_RANGE"

MEANINGS: dict[Code, Meaning] = {
    Code.NO_CERTIFICATE: Meaning(_AUTH, "The call came without a client certificate."),
    Code.FOREIGN_CERTIFICATE: Meaning(_AUTH, "The certificate does not belong to this fleet."),
    Code.CERTIFICATE_EXPIRED: Meaning(_AUTH, "The certificate is past its end date."),
    Code.CERTIFICATE_REVOKED: Meaning(_DENIED, "The certificate was revoked by the operator."),
    Code.WRONG_ROLE: Meaning(_DENIED, "This role may not call this method."),
    Code.RESERVED_NAME: Meaning(_ARG, "The name is reserved or has characters that ids may not have."),
    Code.BAD_CSR: Meaning(_ARG, "The certificate request is malformed or is not for a P-256 key."),
    Code.CLAIM_MALFORMED: Meaning(_ARG, "The claim code is mistyped or incomplete."),
    Code.CLAIM_UNKNOWN: Meaning(_DENIED, "No such claim was issued by this fleet."),
    Code.CLAIM_USED: Meaning(_DENIED, "The claim was already used with another key."),
    Code.CLAIM_EXPIRED: Meaning(_DENIED, "The claim has expired."),
    Code.CLAIM_FOREIGN: Meaning(
        _DENIED, "The authority at that address is not the one that the claim names."
    ),
    Code.TICKET_MALFORMED: Meaning(_ARG, "The ticket cannot be read."),
    Code.TICKET_FORGED: Meaning(_DENIED, "The ticket is unsigned or its signature does not fit."),
    Code.TICKET_UNKNOWN_KEY: Meaning(
        _DENIED, "The ticket is signed with a key that this client does not know."
    ),
    Code.TICKET_FOREIGN: Meaning(_DENIED, "The ticket is for another client or another fleet."),
    Code.TICKET_EXPIRED: Meaning(_PRE, "The ticket's deadline has passed."),
    Code.TICKET_NOT_ALLOWED: Meaning(
        _DENIED, "This client's policy does not allow what the ticket asks for."
    ),
    Code.DUPLICATE: Meaning(_EXISTS, "The ticket was seen before."),
    Code.UNKNOWN_RUN: Meaning(_MISSING, "There is no such run."),
    Code.UNKNOWN_TASK: Meaning(_MISSING, "There is no such task."),
    Code.UNKNOWN_ROUND: Meaning(_MISSING, "There is no such round."),
    Code.UNKNOWN_CLIENT: Meaning(_MISSING, "There is no such client in this fleet."),
    Code.ROUND_CLOSED: Meaning(_PRE, "The round no longer takes reports."),
    Code.NOT_IN_COHORT: Meaning(_DENIED, "This client was not selected for the round."),
    Code.NOT_NOW: Meaning(_LATER, "This client is not needed now."),
    Code.ALREADY_REPORTED: Meaning(_EXISTS, "This client's report is already counted."),
    Code.CONFLICTING_REPEAT: Meaning(_EXISTS, "The call was made before with different content."),
    Code.WRONG_STATE: Meaning(_PRE, "That cannot be done in the present state."),
    Code.UNKNOWN_BLOB: Meaning(_MISSING, "There is no blob with this digest."),
    Code.WRONG_OFFSET: Meaning(_RANGE, "The transfer does not start where the earlier one ended."),
    Code.WRONG_LENGTH: Meaning(_ARG, "The report does not have the length that the round asks for."),
    Code.WRONG_DIGEST: Meaning(_ARG, "The bytes do not have the digest that was announced."),
    Code.WRONG_ENCODING: Meaning(_ARG, "The report is not in the encoding that the round asks for."),
    Code.NOT_FINITE: Meaning(_ARG, "The update holds NaN or infinite numbers."),
    Code.EXAMPLE_COUNT: Meaning(_ARG, "The example count is outside the task's bounds."),
    Code.OUT_OF_RANGE: Meaning(_ARG, "A number is outside its allowed range."),
    Code.MALFORMED: Meaning(_ARG, "The message is missing a field or has one of the wrong size."),
    Code.BUNDLE_MALFORMED: Meaning(_ARG, "The bundle is not a fedless bundle or is damaged."),
    Code.BUNDLE_DIGEST: Meaning(_ARG, "The bundle does not have the digest that was announced."),
    Code.BUNDLE_FORGED: Meaning(_DENIED, "The bundle's signature does not fit."),
    Code.BUNDLE_PUBLISHER: Meaning(_DENIED, "The bundle is signed by a publisher that is not trusted here."),
    Code.BUNDLE_PATH: Meaning(_ARG, "The bundle holds a link or a path that leads outside of it."),
    Code.BUNDLE_TOO_LARGE: Meaning(_FULL, "The bundle or a file in it is larger than allowed."),
    Code.BUNDLE_OLDER: Meaning(_PRE, "The bundle is older than a version that was already seen."),
    Code.BUNDLE_RUNTIME: Meaning(_PRE, "The bundle needs another version of the runtime."),
    Code.MANIFEST_INVALID: Meaning(_ARG, "The bundle's manifest is not valid."),
    Code.MODEL_NOT_PORTABLE: Meaning(_ARG, "The model cannot be trained with TFLite's builtin operations."),
    Code.DATA_MISSING: Meaning(_PRE, "The data that the function needs is not there."),
    Code.DATA_UNREADABLE: Meaning(_ARG, "The data cannot be read."),
    Code.DATA_SHAPE: Meaning(_ARG, "The data does not have the shape that the model needs."),
    Code.DATA_DTYPE: Meaning(_ARG, "The data does not have the type that the model needs."),
    Code.DATA_EMPTY: Meaning(_PRE, "There are no examples."),
    Code.DATA_NOT_FINITE: Meaning(_ARG, "The data holds NaN or infinite numbers."),
    Code.DATA_RANGE: Meaning(_ARG, "A label or value is outside the range that the model needs."),
    Code.INSTANCE_FAILED: Meaning(_OWN, "The function raised an error."),
    Code.INSTANCE_TIMEOUT: Meaning("DEADLINE_EXCEEDED", "The function ran longer than it may."),
    Code.INSTANCE_MEMORY: Meaning(_FULL, "The function needed more memory than it may have."),
    Code.INSTANCE_BAD_RESULT: Meaning(_OWN, "The function returned something that it must not."),
    Code.UNFINISHED: Meaning(
        "DEADLINE_EXCEEDED", "The training stopped for want of time, to be gone on with."
    ),
    Code.QUEUE_FULL: Meaning(_FULL, "Too many invocations are waiting."),
    Code.CALLER_REFUSED: Meaning(_DENIED, "This local caller may not invoke this function."),
    Code.POLICY: Meaning(_DENIED, "This client's own policy forbids what the round asks for."),
    Code.BAD_SIGNATURE: Meaning(_DENIED, "A signature does not fit."),
    Code.TRUST_OLDER: Meaning(_DENIED, "The list of whom to trust is not newer than the one that is known."),
    Code.BAD_POINT: Meaning(_ARG, "A public key is not usable."),
    Code.BAD_BOX: Meaning(_ARG, "A sealed share cannot be opened."),
    Code.BAD_ROSTER: Meaning(_ARG, "The roster is inconsistent."),
    Code.BAD_THRESHOLD: Meaning(_ARG, "The threshold is not allowed."),
    Code.BAD_BITMAP: Meaning(_ARG, "The list of survivors is not acceptable."),
    Code.BAD_SHARE: Meaning(_ARG, "A share does not fit its commitment."),
    Code.BAD_CONTEXT: Meaning(_ARG, "The round is not the one that this client agreed to."),
    Code.EPOCH_STALE: Meaning(_PRE, "The key epoch is not newer than the last one."),
    Code.SLOT_USED: Meaning(_PRE, "The slot was used before."),
    Code.SLOT_CLOSED: Meaning(_PRE, "The slot was closed and its shares are erased."),
    Code.MODEL_REPEATED: Meaning(_DENIED, "This client already reported on this model version."),
    Code.STATE_OLDER: Meaning(_PRE, "This client's key state is lost or older than the aggregator's record."),
    Code.TWO_BITMAPS: Meaning(_DENIED, "Two different lists of survivors were signed for one slot."),
    Code.TOO_FEW: Meaning(_PRE, "Too few clients are left."),
    Code.SEED_REPEATED: Meaning(_DENIED, "A mask seed occurs twice."),
    Code.HELPER_KEY: Meaning(_DENIED, "The helper's key is not the pinned one."),
    Code.CALL_EXPIRED: Meaning(_PRE, "The call to the helper is past its end, or too far before it."),
    Code.CALL_REPEATED: Meaning(_EXISTS, "The call to the helper was made before."),
    Code.RING_OVERFLOW: Meaning(_ARG, "The sum would not fit into the ring."),
    Code.PRIVACY_BUDGET: Meaning(_FULL, "A client's privacy budget would be passed."),
    Code.FUNCTION_UNKNOWN: Meaning(_MISSING, "The platform knows no such function."),
    Code.FUNCTION_LIMIT: Meaning(_PRE, "The task does not fit the platform's limits."),
    Code.FUNCTION_FAILED: Meaning(_OWN, "The cloud function failed."),
    Code.PLATFORM_UNREACHABLE: Meaning(_LATER, "The platform cannot be reached."),
    Code.PLATFORM_DENIED: Meaning(_DENIED, "The platform refuses these credentials."),
    Code.PLATFORM_BUSY: Meaning(_LATER, "The platform has no capacity now."),
    Code.PLATFORM_ANSWER: Meaning(_OWN, "The platform gave an answer that is none."),
    Code.PLATFORM_TIMEOUT: Meaning("DEADLINE_EXCEEDED", "The platform did not answer in time."),
    Code.CONFIG_INVALID: Meaning(_ARG, "The configuration is not valid."),
    Code.STATE_LOCKED: Meaning(_PRE, "Another process is using this state directory."),
    Code.STATE_MISSING: Meaning(_PRE, "The state directory is not set up."),
    Code.STATE_EXISTS: Meaning(_EXISTS, "There is something here already, and it is not overwritten."),
    Code.STATE_CORRUPT: Meaning("DATA_LOSS", "The stored state is damaged."),
    Code.DISK_FULL: Meaning(_FULL, "There is no space left on the disk."),
    Code.STORE_UNREACHABLE: Meaning(_LATER, "The database or the blob store cannot be reached."),
    Code.CLOCK_WRONG: Meaning(_PRE, "The clock is wrong."),
    Code.PORT_IN_USE: Meaning(_PRE, "The port is in use."),
    Code.NOT_INSTALLED: Meaning(_PRE, "A needed program or package is not installed."),
    Code.BROKER_UNREACHABLE: Meaning(_LATER, "The MQTT broker cannot be reached."),
    Code.AGGREGATOR_UNREACHABLE: Meaning(_LATER, "The aggregator cannot be reached."),
    Code.HELPER_UNREACHABLE: Meaning(_LATER, "The helper cannot be reached."),
    Code.BUSY: Meaning(_LATER, "Busy; try again later."),
    Code.INTERNAL: Meaning(_OWN, "Something went wrong inside."),
}


class FedlessError(Exception):
    """Base of all errors that a user or a peer may see.

    `code` says what, `detail` says what was expected and what was found, `fix` says what to do,
    `retry_after_ms` when trying again makes sense (None: never as it is). None of them may hold
    a secret: errors are logged and sent.
    """

    def __init__(
        self, code: Code, detail: str = "", *, fix: str = "", retry_after_ms: int | None = None
    ) -> None:
        self.code = code
        self.detail = detail
        self.fix = fix
        self.retry_after_ms = retry_after_ms
        super().__init__(str(self))

    def __str__(self) -> str:
        """One line for people: sentence, detail, remedy."""
        return " ".join(part for part in (self.code.sentence, self.detail, self.fix) if part)

    def __repr__(self) -> str:
        """Type and code only."""
        return f"{type(self).__name__}({self.code.name})"


class PeerError(FedlessError):
    """The other party's fault: it is refused by code and counted, and we go on."""


class LocalError(FedlessError):
    """Our own fault or our own machine's: configuration, disk, state, a missing package."""
