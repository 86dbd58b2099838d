"""A function of one's own, `def handle(event, context)`: begin one, and try it as a device would run it.

Works without tensorflow. `edge_runtime.handler` has the contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import sandbox
from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from fedless.authoring.sign import read_manifest
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import BUILTIN_ENTRY, MANIFEST_FILE, NAME, Manifest, dump

CODE_FILE = "main.py"
_SCRATCH_MB = 16
_CPU_S = 600
_CODE = '''\
"""{name}: called with an event (JSON values), answers with JSON values."""


def handle(event, context):
    """See docs/functions.md for the context: function, version, data, scratch, model, remaining_ms()."""
    return {{"function": context.function, "event": event}}
'''


@dataclass(frozen=True)
class Trial:
    """What one call gave. `sandbox` names the mechanisms that it ran under."""

    answer: object
    run_ms: float
    peak_rss_mb: float
    sandbox: tuple[str, ...]


def begin(folder: Path, name: str) -> Manifest:
    """Write `function.toml` and `main.py` of a new function. Raises `LocalError` STATE_EXISTS, RESERVED_NAME."""
    if not NAME.fullmatch(name):
        detail = f"{name!r}; expected 1 to 64 of a-z, 0-9 and '-', no '-' at the ends."
        raise LocalError(Code.RESERVED_NAME, detail)
    present = [item for item in (MANIFEST_FILE, CODE_FILE) if (folder / item).exists()]
    if present:
        raise LocalError(Code.STATE_EXISTS, f"{folder} has {' and '.join(present)} already.")
    manifest = Manifest(name=name, version=1, entry="main:handle", memory_mb=128, timeout_ms=10_000)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_text(dump(manifest), encoding="utf-8")
    (folder / CODE_FILE).write_text(_CODE.format(name=name), encoding="utf-8")
    return manifest


def try_out(folder: Path, event: object, data: Mapping[str, Path]) -> Trial:
    """Call the function once, in the sandbox that a device would give it; `data` are its mounts.

    Raises `FedlessError`: MANIFEST_INVALID, DATA_MISSING for a mount that is not given, INSTANCE_*.
    """
    folder = folder.absolute()
    manifest = read_manifest(folder)
    if manifest.entry == BUILTIN_ENTRY:
        detail = f"{manifest.name} has the built-in entry."
        raise LocalError(Code.WRONG_STATE, detail, fix="`fedless experiment run` trains it on this machine.")
    missing = sorted(set(manifest.data_mounts) - set(data))
    if missing:
        raise LocalError(
            Code.DATA_MISSING, f"Expected a path for {', '.join(missing)}.", fix="--data NAME=PATH"
        )
    mounts = {name: str(data[name].absolute()) for name in manifest.data_mounts}
    space = sandbox.Space((str(folder), *mounts.values()), _SCRATCH_MB, manifest.network)
    level = sandbox.probe()
    confinement = sandbox.confinement(space, manifest.memory_mb, _CPU_S, level)
    job = Job(JobKind.INVOKE, str(folder), "", mounts, event=event, confinement=confinement)
    with Instance.start(space=space if level.namespaces else None) as instance:
        outcome = instance.run(job, timeout_ms=manifest.timeout_ms)
    answer = json.loads(bytes(outcome.payload))
    return Trial(answer, outcome.timings_ms["total_ms"], outcome.peak_rss_mb, level.mechanisms)
