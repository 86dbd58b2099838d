"""One call of a function's own entry, or one inference: its job, its answer, and what it says about the version.

Called by `pool` (the device's own programs, the clock) and by `orders` (the fleet): both run the same function alike.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge_runtime import bundle, heads, lifecycle
from edge_runtime.config import EdgeConfig
from edge_runtime.functions import FOLDER, Functions
from edge_runtime.jobs import Job, JobKind, Outcome
from edge_runtime.log import say
from edge_runtime.starts import Starts
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import BUILTIN_ENTRY

BLAME = frozenset(
    {Code.INSTANCE_FAILED, Code.INSTANCE_TIMEOUT, Code.INSTANCE_MEMORY, Code.INSTANCE_BAD_RESULT}
)
"""What a function is to blame for; wrong inputs are the caller's."""


def job(
    unpacked: bundle.Unpacked, event: object, starts: Starts, config: EdgeConfig, *, here: bool = False
) -> Job:
    """What the instance is given. Raises `LocalError`: UNKNOWN_BLOB (no model to infer from), DATA_MISSING.

    `here`: the answer stays on this device, so an inference, or a function's own entry, uses this device's personal
    parameters, if it has any for the newest model. What is sent to the fleet would tell of them.
    """
    manifest = unpacked.manifest
    memory_mb = config.memory_mb(manifest)
    own = manifest.entry != BUILTIN_ENTRY
    personal = heads.Heads(starts.state / heads.FOLDER, config.limits.heads_mb << 20)
    head = personal.served(unpacked.digest) if here and not own else None
    model = _model(unpacked, starts, needed=not own)
    if here and own and model:
        model = str((personal.completed(unpacked.digest, Path(model)) or Path(model)).absolute())
    return Job(
        kind=JobKind.INVOKE if own else JobKind.INFER,
        function_dir=str(unpacked.directory.absolute()),
        parameters=model,
        data={name: source.path for name, source in config.sources(manifest).items()} if own else {},
        threads=config.limits.threads,
        memory_mb=memory_mb,
        event=event if own else event or {},
        confinement=starts.confinement(unpacked, config, memory_mb),
        personal=head[1].personal if head else (),
        head=str(head[0].absolute()) if head else "",
    )


def value(result: Outcome) -> object:
    """JSON values: the function's answer, or {"outputs": rows}."""
    if result.shape:
        import numpy as np  # noqa: PLC0415  (only an answer of numbers needs it)

        return {"outputs": np.frombuffer(result.payload, "<f4").reshape(result.shape).tolist()}
    return json.loads(bytes(result.payload) or b"null")


def unpacked(state: Path, digest: str) -> bundle.Unpacked:
    """The files of an installed version. Raises `LocalError(STATE_MISSING)`."""
    found = bundle.find(state / FOLDER, digest)
    if found is None:
        raise LocalError(Code.STATE_MISSING, f"The files of version {digest[:12]} are gone.")
    return found


def judge(functions: Functions, name: str, *, failed: bool) -> None:
    """How one call of the version that serves went: the automaton decides, and what it decides is written down."""
    automaton = lifecycle.Function(
        lifecycle.Limits(), [item.as_version() for item in functions.versions(name)]
    )
    serves = automaton.current()
    if serves is None:
        return
    events = (lifecycle.Invoked(1, 1), lifecycle.Started(serves.digest), lifecycle.Finished(1, failed))
    effects = [effect for event in events for effect in automaton.handle(event, 0)]
    for version in automaton.versions:
        functions.judge(version)
    for effect in effects:
        if isinstance(effect, lifecycle.RollBack):
            say("functions", "rolled_back", function=name, given_up=effect.digest[:12], to=effect.to[:12])


def _model(unpacked: bundle.Unpacked, starts: Starts, *, needed: bool) -> str:
    """The newest model's file."""
    known = starts.functions.find(unpacked.digest)
    path = starts.state / "cache" / known.model if known is not None and known.model else None
    if path is not None and path.is_file():
        return str(path.absolute())
    if needed:
        detail = f"No model of {unpacked.manifest.name} is on this device."
        raise LocalError(Code.UNKNOWN_BLOB, detail, fix="It comes with the next round of training.")
    return ""
