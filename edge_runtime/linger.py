"""A participant that stays for the next wake-up: its imports are done, and so are those of its fork server.

The agent starts it as `python -m edge_runtime.linger --state DIR --keep-s S --memory-mb MB` in place of `participant`
if edge.toml gives it memory (`[warm]`). Wake-ups come on standard input, each as one line `LENGTH RECEIVED STARTED
AGENT_RSS` (CLOCK_MONOTONIC ms, MB) and LENGTH bytes. It answers as `participant`, and then `idle` when it can take the
next one. It ends by itself after S seconds without one, when the pipe closes, when it needs more than MB together with
its fork server, or after an error; what it had not accepted is the agent's to send again.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from edge_runtime.alone import alone
from edge_runtime.kept import Kept
from edge_runtime.log import say
from edge_runtime.participant import WAKE_BYTES_MAX, Participant, WakeUp
from edge_runtime.reply import BUSY_EXIT, leave, log_step, stop, write_line
from fedless.protocol.errors import Code, FedlessError

_HEAD_MAX = 128


def linger(state: Path, wakes: Iterator[WakeUp], memory_mb: int, answer: Callable[[str], None]) -> int:
    """Run for each wake-up; the exit status, as `participant`."""
    try:
        with alone(state), closing(Kept.open(state, lingers=True)) as kept:
            for wake in wakes:
                kept.look()
                Participant(state, wake, log_step, answer, kept).run()
                kept.journal.settle()
                if not kept.starts.keep_warm(memory_mb):
                    return 0
                answer("idle")
    except FedlessError as error:
        say("participant", "failed", code=error.code.value, why=str(error))
        return BUSY_EXIT if error.code is Code.BUSY else 1
    return 0


def frames(descriptor: int, keep_s: float) -> Iterator[WakeUp]:
    """Wake-ups as they come; ends when none came for `keep_s`, at the end of the pipe, or at something else."""
    buffer = b""
    while True:
        head, found, rest = buffer.partition(b"\n")
        words = head.split()
        if found and len(words) == 4 and words[0].isdigit() and int(words[0]) <= WAKE_BYTES_MAX:  # noqa: PLR2004
            length = int(words[0])
            if len(rest) >= length:
                buffer = rest[length:]
                received, started, rss = (float(word) for word in words[1:])
                yield WakeUp(rest[:length], received, started, rss)
                continue
        elif found or len(buffer) > _HEAD_MAX:
            say("participant", "wake_malformed", bytes=len(buffer))
            return
        readable, _, _ = select.select([descriptor], [], [], keep_s)
        piece = os.read(descriptor, WAKE_BYTES_MAX) if readable else b""
        if not piece:
            return
        buffer += piece


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m edge_runtime.linger --state DIR --keep-s S --memory-mb MB`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    named = dict(zip(given[::2], given[1::2], strict=True))
    signal.signal(signal.SIGTERM, stop)
    wakes = frames(0, float(named["--keep-s"]))
    return leave(linger(Path(named["--state"]), wakes, int(named["--memory-mb"]), write_line))


if __name__ == "__main__":
    sys.exit(main())
