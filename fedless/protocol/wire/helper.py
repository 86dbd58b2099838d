"""The Helper service's messages: a close request and its answer, in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fedless.protocol import messages as m
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport, MaskSum
from fedless.v1 import helper_pb2

REPORTS_PER_CHUNK = 500
REPORTS_PER_CHUNK_MAX = 1000


def close_request_to_pb(request: CloseRequest) -> Iterator[helper_pb2.CloseChunk]:
    """The chunks of a request."""
    opened = codec.dumps(request.open)
    for at in range(0, max(1, len(request.reports)), REPORTS_PER_CHUNK):
        part = request.reports[at : at + REPORTS_PER_CHUNK]
        yield helper_pb2.CloseChunk(open=opened, reports=[codec.dumps(report) for report in part])
        opened = b""


def close_open_from_pb(first: helper_pb2.CloseChunk) -> HelperOpen:
    """The round in the first chunk. Raises `PeerError` MALFORMED."""
    return codec.loads(HelperOpen, first.open)


def close_reports_from_pb(chunk: helper_pb2.CloseChunk) -> tuple[HelperReport, ...]:
    """The reports in one chunk. Raises `PeerError` MALFORMED."""
    if len(chunk.reports) > REPORTS_PER_CHUNK_MAX:
        raise PeerError(Code.MALFORMED, f"Expected at most {REPORTS_PER_CHUNK_MAX} reports in a chunk.")
    return tuple(codec.loads(HelperReport, report) for report in chunk.reports)


def mask_sum_to_pb(head: MaskSum, words: Words) -> Iterator[helper_pb2.MaskSumChunk]:
    """The chunks of an answer."""
    encoded = codec.dumps(head)
    data = words.data.cast("B")
    for at in range(0, max(1, len(data)), m.CHUNK_BYTES):
        yield helper_pb2.MaskSumChunk(head=encoded, data=bytes(data[at : at + m.CHUNK_BYTES]))
        encoded = b""


def refused_reports_to_pb(refused: RefusedReports) -> helper_pb2.MaskSumChunk:
    """The one chunk of an answer that refuses reports."""
    reports = [
        helper_pb2.RefusedReport(client_id=client_id, code=code.value)
        for client_id, code in refused.reasons.items()
    ]
    return helper_pb2.MaskSumChunk(refused=reports)


def mask_sum_from_pb(
    opened: HelperOpen, chunks: Iterable[helper_pb2.MaskSumChunk]
) -> tuple[MaskSum, Words] | RefusedReports:
    """The answer to a request for `opened`; what is in it is checked by `secagg.helper.check_mask_sum`.

    Raises `PeerError` MALFORMED or WRONG_LENGTH.
    """
    words: Words = np.empty(opened.encoding.words, dtype=word_dtype(opened.encoding.bits))
    data = words.data.cast("B")
    head: MaskSum | None = None
    at = 0
    for chunk in chunks:
        if chunk.refused:
            return RefusedReports({item.client_id: Code.of(item.code) for item in chunk.refused})
        if head is None:
            head = codec.loads(MaskSum, chunk.head)
        if at + len(chunk.data) > len(data):
            raise PeerError(Code.WRONG_LENGTH, f"Expected {len(data)} bytes of sums, found more.")
        data[at : at + len(chunk.data)] = chunk.data
        at += len(chunk.data)
    if head is None or at != len(data):
        raise PeerError(Code.WRONG_LENGTH, f"Expected {len(data)} bytes of sums, found {at}.")
    return head, words
