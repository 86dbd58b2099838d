"""What a participant tells the agent and the log, and how it hears that it must end. Called by both participants."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from edge_runtime.log import say

BUSY_EXIT = 75


def log_step(step: str, round_id: int) -> None:
    """One line for a step."""
    say("participant", step, round=round_id)


def log_ended(run_id: str, round_id: int, kind: str, outcome: str, why: str) -> None:
    """One line for a round that is over here, or goes on later; it names the round's trace."""
    from fedless.protocol.trace import trace_id  # noqa: PLC0415  (after the instance was started)

    trace = trace_id(run_id, round_id).hex()
    say("participant", "round_ended", round=round_id, kind=kind, outcome=outcome, why=why, trace=trace)


def write_line(line: str) -> None:
    """One line to the agent; if it is gone, the work goes on."""
    try:
        os.write(1, f"{line}\n".encode())
    except OSError:
        return


def leave(status: int) -> NoReturn:
    """End this process, whose files, links and children are closed: gRPC would take 30 ms to be taken apart."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # whoever read it is gone
    os._exit(status)


def stop(number: int, frame: object) -> NoReturn:
    """SIGTERM: leave every `with` block, so that the instance ends too; the round stays open."""
    del frame
    raise SystemExit(128 + number)
