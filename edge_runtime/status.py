"""What `fedless-edge status` shows: enrolled as whom, connected or not, the last wake-up and outcome, counters, disk.

Reads files only; works whether the agent runs or not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from edge_runtime.budget import held
from edge_runtime.clock import unix_ms
from edge_runtime.config import FILE, load
from edge_runtime.journal import FILE as JOURNAL
from edge_runtime.journal import Journal
from edge_runtime.keystore import Keystore
from fedless.protocol.errors import Code, LocalError


def collect(state: Path) -> dict[str, object]:
    """Everything as JSON values. Raises `LocalError` STATE_MISSING, STATE_CORRUPT, CONFIG_INVALID."""
    own = Keystore(state).load()
    config = load(state / FILE)
    return {
        "fleet": own.fleet,
        "client_id": own.client_id,
        "certificate_not_after_ms": own.not_after_ms,
        "endpoints": {"fleet": own.endpoints.fleet, "mqtt": own.endpoints.mqtt},
        "agent": agent(state),
        **_journal(state),
        "cache": {"bytes": _bytes(state / "cache"), "limit_bytes": config.limits.cache_mb << 20},
        "data": sorted(config.data),
    }


def agent(state: Path) -> dict[str, object]:
    """What the agent last wrote, and whether it runs: `state` is connected, disconnected, starting or stopped."""
    running = _locked(state / "lock")
    try:
        told = json.loads((state / "agent.json").read_bytes())
    except (OSError, ValueError):
        told = {}
    if not running:
        return {"running": False, "state": "stopped", "at_ms": told.get("at_ms", 0)}
    return {"running": True, **told}


def lines(found: dict[str, object]) -> list[str]:
    """The same for people."""
    shown = [f"client       {found['client_id']} of fleet {found['fleet']}"]
    told = found["agent"]
    assert isinstance(told, dict)  # noqa: S101 - `collect` made it
    reason = f" ({told['reason']})" if told.get("reason") else ""
    shown.append(f"agent        {told['state']}{reason}{_since(told.get('at_ms'))}")
    last = found["last_round"]
    if isinstance(last, dict):
        outcome = last["outcome"] or "open"
        shown.append(
            f"last wake-up round {last['round_id']} ({last['kind']}): {outcome}{_since(last['received_at_ms'])}"
        )
    else:
        shown.append("last wake-up none yet")
    for name in ("counters", "outbox", "cache"):
        values = found[name]
        assert isinstance(values, dict)  # noqa: S101
        shown.append(f"{name:<12} " + (", ".join(f"{k} {v}" for k, v in values.items()) or "none"))
    reasons = found["reasons"]
    assert isinstance(reasons, list)  # noqa: S101
    shown += [f"why not      round {r['round_id']}: {r['code']} {r['detail']}".rstrip() for r in reasons[:5]]
    return shown


def _journal(state: Path) -> dict[str, object]:
    try:
        journal = Journal.open(state / JOURNAL, read_only=True)
    except LocalError as error:
        if error.code is not Code.STATE_MISSING:
            raise
        return {"last_round": None, "counters": {}, "reasons": [], "outbox": {"reports": 0, "bytes": 0}}
    try:
        reports = len(journal.reports())
        return {
            "last_round": journal.last_round(),
            "counters": journal.counters(),
            "reasons": [
                {"at_ms": r.at_ms, "code": r.code, "detail": r.detail, "round_id": r.round_id}
                for r in journal.reasons()
            ],
            "outbox": {"reports": reports, "bytes": journal.outbox_bytes()},
        }
    finally:
        journal.close()


def _locked(path: Path) -> bool:
    try:
        return held(path)
    except PermissionError as error:
        detail = f"{path} may not be read by this user."
        raise LocalError(Code.STATE_MISSING, detail, fix="Run it as the agent's user.") from error


def _bytes(folder: Path) -> int:
    return sum(e.stat().st_size for e in os.scandir(folder) if e.is_file()) if folder.is_dir() else 0


def _since(at_ms: object) -> str:
    if not isinstance(at_ms, int) or not at_ms:
        return ""
    seconds = max(0, unix_ms() - at_ms) // 1000
    hours, minutes = divmod(seconds // 60, 60)
    return f", {hours} h {minutes} min ago" if hours else f", {minutes} min {seconds % 60} s ago"
