"""*Pure.* The ids of a round's trace, which every party derives from what it knows anyway: the run and the round.

So a device's log line, the aggregator's record and the spans that are made of both (`fedless run watch --otlp`) are of
one trace, and no context travels. Ids have the sizes of W3C Trace Context (16 and 8 bytes).
"""

from __future__ import annotations

import hashlib

TRACE_BYTES, SPAN_BYTES = 16, 8


def trace_id(run_id: str, round_id: int) -> bytes:
    """16 bytes."""
    return hashlib.sha256(f"{run_id}/{round_id}".encode()).digest()[:TRACE_BYTES]


def span_id(run_id: str, round_id: int, place: str) -> bytes:
    """8 bytes; `place` is a path in the trace: empty for the round, `client`, `client/part`."""
    return hashlib.sha256(f"{run_id}/{round_id}/{place}".encode()).digest()[:SPAN_BYTES]


def traceparent(run_id: str, round_id: int, place: str = "") -> str:
    """The header of W3C Trace Context, sampled."""
    return f"00-{trace_id(run_id, round_id).hex()}-{span_id(run_id, round_id, place).hex()}-01"
