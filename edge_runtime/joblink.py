"""The instance's end of its link: take a place, then one job with its files (`Job.files`) as open descriptors.

Called by `trainer`. What is said on the link: `jobs`. The files are named `/proc/self/fd/N`; `opened` takes them by
number, since an instance that has locked itself in may open none by name.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import Any, BinaryIO

from edge_runtime.jobs import LENGTH, MAX_FRAME_BYTES, Job, Place

FILES_MAX = 5
_DESCRIPTOR = "/proc/self/fd/"


def receive(link: socket.socket) -> Job | Place | None:
    """The job, or a place before it; None if the parent went away before it sent one."""
    head, descriptors, _, _ = socket.recv_fds(link, LENGTH.size, FILES_MAX)
    with link.makefile("rb", buffering=0) as stream:
        rest = _exactly(stream, LENGTH.size - len(head)) if head else None
        if rest is None:
            return None
        (length,) = LENGTH.unpack(head + rest)
        body = _exactly(stream, length) if length <= MAX_FRAME_BYTES else None
    if body is None:
        return None
    values = json.loads(body)
    if "place" in values:
        return Place.from_json(values["place"])
    job = Job.from_json(values)
    came = iter(descriptors)
    parameters, control, own, state, own_head = (
        f"{_DESCRIPTOR}{next(came)}" if file else "" for file in job.files
    )
    return replace(job, parameters=parameters, control=control, own_control=own, state=state, head=own_head)


def opened(path: str) -> BinaryIO:
    """One of a job's files, open for reading. Closing it leaves the descriptor that came as it is."""
    if path.startswith(_DESCRIPTOR):
        file = os.fdopen(os.dup(int(path.removeprefix(_DESCRIPTOR))), "rb")
        file.seek(0)  # which the duplicates of a descriptor share
        return file
    return open(path, "rb")  # noqa: PTH123  (a job of this process, by name)


def _exactly(stream: Any, length: int) -> bytes | None:  # noqa: ANN401  (a raw socket file has no public type)
    data = b""
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            return None
        data += piece
    return data
