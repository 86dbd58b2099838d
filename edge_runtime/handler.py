"""A user's own function, on the instance's side: load its entry, call it, bound its answer.

The contract, the same on devices and in clouds:

    def handle(event, context):
        return ...

`event` and the answer are JSON values; `context` is a `Context`. Called by `trainer` for jobs of kind `invoke`, inside
the instance's confinement.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.jobs import Job
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import Manifest

MAX_ANSWER_BYTES = 1 << 20
Handler = Callable[[Any, "Context"], Any]


@dataclass(frozen=True)
class Context:
    """What a function may know of its invocation.

    `data` has the path of each declared data mount by name (read-only); `scratch` is a folder of bounded size that is
    gone afterwards, or empty if there is none; `model` is the path of the newest model's raw float32 file, or empty.
    """

    function: str
    version: int
    deadline: float = field(repr=False)
    data: Mapping[str, str] = field(default_factory=dict)
    scratch: str = ""
    model: str = ""

    def remaining_ms(self) -> int:
        """Milliseconds until this invocation is stopped."""
        return max(0, int(self.deadline - time.monotonic() * 1000))


def call(directory: Path, entry: str, event: object, context: Context) -> bytes:
    """The instance: `entry` is `module:function` in `directory`; the answer as JSON bytes.

    Raises `PeerError` INSTANCE_FAILED (no such entry, or it raised), INSTANCE_BAD_RESULT (not JSON, too large).
    """
    handle = load(directory, entry)
    try:
        answer = handle(event, context)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (the author's code raises what it likes)
        raise PeerError(
            Code.INSTANCE_FAILED, f"It raised {type(error).__name__}: {str(error)[:500]}."
        ) from None
    return encoded(answer)


def load(directory: Path, entry: str) -> Handler:
    """The function that `entry` names. Raises `PeerError(INSTANCE_FAILED)`."""
    module_name, _, function_name = entry.partition(":")
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True  # the folder is read-only
    try:
        found = getattr(importlib.import_module(module_name), function_name, None)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (importing runs the author's code)
        detail = f"{module_name} cannot be imported: {type(error).__name__}: {str(error)[:300]}."
        raise PeerError(Code.INSTANCE_FAILED, detail) from None
    if not callable(found):
        raise PeerError(
            Code.INSTANCE_FAILED, f"{module_name} has no function {function_name}(event, context)."
        )
    handler: Handler = found
    return handler


def encoded(answer: object) -> bytes:
    """The answer as JSON of at most `MAX_ANSWER_BYTES`. Raises `PeerError(INSTANCE_BAD_RESULT)`."""
    try:
        data = json.dumps(answer, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        detail = f"It must return JSON values, returned {type(answer).__name__}: {str(error)[:200]}."
        raise PeerError(Code.INSTANCE_BAD_RESULT, detail) from None
    if len(data) > MAX_ANSWER_BYTES:
        detail = f"It returned {len(data)} bytes of JSON; at most {MAX_ANSWER_BYTES} are taken."
        raise PeerError(Code.INSTANCE_BAD_RESULT, detail)
    return data


def serve(job: Job, manifest: Manifest) -> bytes:
    """The instance: the author's own entry on the job's event. Raises as `call`."""
    context = Context(
        function=manifest.name,
        version=manifest.version,
        deadline=time.monotonic() * 1000 + job.timeout_ms,
        data={str(name): str(path) for name, path in job.data.items()},
        scratch=next(iter(job.confinement.get("write", ())), ""),
        model=job.parameters,
    )
    return call(Path(job.function_dir), manifest.entry, job.event, context)
