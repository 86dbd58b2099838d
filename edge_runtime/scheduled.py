"""One call of a function by the clock: started by the agent's timetable as `... --state DIR --name NAME`.

`[schedule.NAME]` of edge.toml says which function, how often, and with which event. The answer goes nowhere; its
figures are in `fedless-edge stats`, its refusals in the log.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from edge_runtime.config import FILE, load
from edge_runtime.functions import SCHEDULE, Functions
from edge_runtime.log import say
from edge_runtime.pool import Pool
from fedless.protocol.errors import Code, FedlessError, LocalError


def call(state: Path, name: str) -> int:
    """Call it once; the exit status."""
    try:
        config = load(state / FILE)
        entry = config.schedule.get(name)
        if entry is None:
            raise LocalError(
                Code.CONFIG_INVALID, f"There is no [schedule.{name}] any more; restart the agent."
            )
        functions = Functions(state)
        with closing(functions), closing(Pool(state, config, functions)) as pool:
            answer = pool.invoke(entry.function, entry.event, SCHEDULE)
        say(
            "schedule",
            "invoked",
            name=name,
            function=entry.function,
            version=answer.version,
            ms=answer.total_ms,
        )
    except FedlessError as error:
        say("schedule", "refused", name=name, code=error.code.value, why=error.detail)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`--state DIR --name NAME`."""
    _, state, _, name = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return call(Path(state), name)


if __name__ == "__main__":
    sys.exit(main())
