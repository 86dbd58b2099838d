"""The instance's end of its link: take one job, with its files (`Job.files`) as open descriptors.

Called by `trainer`. What is said on the link: `jobs`.
"""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

from edge_runtime.jobs import LENGTH, MAX_FRAME_BYTES, Job

FILES_MAX = 5


def receive(link: socket.socket) -> Job | None:
    """The job, or None if the parent went away before it sent one."""
    head, descriptors, _, _ = socket.recv_fds(link, LENGTH.size, FILES_MAX)
    with link.makefile("rb", buffering=0) as stream:
        rest = _exactly(stream, LENGTH.size - len(head)) if head else None
        if rest is None:
            return None
        (length,) = LENGTH.unpack(head + rest)
        body = _exactly(stream, length) if length <= MAX_FRAME_BYTES else None
    if body is None:
        return None
    job = Job.from_json(json.loads(body))
    came = iter(descriptors)
    parameters, control, own, state, own_head = (
        f"/proc/self/fd/{next(came)}" if file else "" for file in job.files
    )
    return replace(job, parameters=parameters, control=control, own_control=own, state=state, head=own_head)


def _exactly(stream: Any, length: int) -> bytes | None:  # noqa: ANN401  (a raw socket file has no public type)
    data = b""
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            return None
        data += piece
    return data
