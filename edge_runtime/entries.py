"""*Pure.* What the journal holds, as objects: rounds, reports and answers that are not over, and reasons.

A report's header is kept as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedless.protocol.messages import Encoding, ReportHeader


@dataclass(frozen=True)
class OpenRound:
    """A ticket that was accepted here and has no outcome yet. `ticket` is the signed ticket's content."""

    nonce: bytes
    ticket: bytes
    attempts: int


@dataclass(frozen=True)
class StoredReport:
    """A finished report in the outbox: its header, and the file (relative to the outbox) with its payload."""

    nonce: bytes
    header: ReportHeader
    file: str
    until_ms: int


@dataclass(frozen=True)
class StoredAnswer:
    """What came of an order, as JSON (`orders`)."""

    nonce: bytes
    result: str
    until_ms: int


@dataclass(frozen=True)
class Reason:
    """Why something was refused or not done."""

    at_ms: int
    code: str
    detail: str
    round_id: int


def header_text(header: ReportHeader) -> str:
    """A header as it is kept."""
    return json.dumps(
        {
            "round_id": header.round_id,
            "encoding": int(header.encoding),
            "length_bytes": header.length_bytes,
            "sha256": header.sha256.hex(),
            "examples": header.examples,
            "sums": dict(header.sums),
            "masked": header.masked.hex(),
        }
    )


def header_of(text: str) -> ReportHeader:
    """What `header_text` wrote."""
    values = json.loads(text)
    return ReportHeader(
        **values
        | {
            "sha256": bytes.fromhex(values["sha256"]),
            "encoding": Encoding(values["encoding"]),
            "masked": bytes.fromhex(values["masked"]),
        }
    )
