"""The border: protobuf <-> messages. Every length and range is checked here, once.

`x_to_pb` never fails on a valid message; `x_from_pb` raises `PeerError` MALFORMED (tickets:
TICKET_MALFORMED) and says which field was expected to be what. No other package of the protocol
knows protobuf.
"""

from fedless.protocol.wire.checks import TIME_MAX_MS
from fedless.protocol.wire.clients import (
    endpoints_from_pb,
    endpoints_to_pb,
    enroll_request_from_pb,
    enrollment_from_pb,
    enrollment_to_pb,
    error_from_bytes,
    error_to_bytes,
    keys_from_pb,
    keys_to_pb,
    policy_from_pb,
    policy_to_pb,
    status_from_pb,
    status_to_pb,
    trust_lists_from_pb,
    trust_lists_to_pb,
)
from fedless.protocol.wire.orders import (
    json_text,
    order_from_bytes,
    order_reply_from_pb,
    order_result_from_pb,
    order_result_to_pb,
    order_to_bytes,
)
from fedless.protocol.wire.rounds import (
    check_in_from_pb,
    check_in_reply_from_pb,
    check_in_reply_to_pb,
    epoch_step_from_pb,
    epoch_step_to_pb,
    metrics_from_pb,
    metrics_to_pb,
    report_header_from_pb,
    report_header_to_pb,
    round_step_from_pb,
    round_step_to_pb,
)
from fedless.protocol.wire.tickets import (
    signed_ticket_from_bytes,
    signed_ticket_to_bytes,
    task_from_bytes,
    task_to_bytes,
    ticket_from_bytes,
    ticket_to_bytes,
)

__all__ = [
    "TIME_MAX_MS",
    "check_in_from_pb",
    "check_in_reply_from_pb",
    "check_in_reply_to_pb",
    "endpoints_from_pb",
    "endpoints_to_pb",
    "enroll_request_from_pb",
    "enrollment_from_pb",
    "enrollment_to_pb",
    "epoch_step_from_pb",
    "epoch_step_to_pb",
    "error_from_bytes",
    "error_to_bytes",
    "json_text",
    "keys_from_pb",
    "keys_to_pb",
    "metrics_from_pb",
    "metrics_to_pb",
    "order_from_bytes",
    "order_reply_from_pb",
    "order_result_from_pb",
    "order_result_to_pb",
    "order_to_bytes",
    "policy_from_pb",
    "policy_to_pb",
    "report_header_from_pb",
    "report_header_to_pb",
    "round_step_from_pb",
    "round_step_to_pb",
    "signed_ticket_from_bytes",
    "signed_ticket_to_bytes",
    "status_from_pb",
    "status_to_pb",
    "task_from_bytes",
    "task_to_bytes",
    "ticket_from_bytes",
    "ticket_to_bytes",
    "trust_lists_from_pb",
    "trust_lists_to_pb",
]
