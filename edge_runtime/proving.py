"""An agent on trial has reached the broker: it is proved. Imports what the idle agent has anyway.

`update` decides what is on trial; the alarm that it set ends an agent that never comes here.
"""

from __future__ import annotations

import json
import os
import signal

from edge_runtime.disk import write_whole
from edge_runtime.log import say

FOLDER, STANDING = "versions", "standing.json"
TRIAL = "FEDLESS_TRIAL"
"""In the environment of an agent on trial: its state directory."""
AGAIN = "FEDLESS_AGAIN"
"""In the environment of every agent: the command that chooses a version and becomes it, JSON."""


def proved() -> None:
    """Say so, once, if this agent is on trial."""
    state = os.environ.pop(TRIAL, "")
    if not state:
        return
    path = f"{state}/{FOLDER}/{STANDING}"
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs memory
            values = json.load(file)
        write_whole(path, json.dumps(values | {"trial": False, "tries": 0}).encode())
    except (OSError, ValueError, TypeError) as error:
        say("agent", "trial_not_ended", why=error)  # the alarm ends it; the next start counts one more try
        return
    signal.alarm(0)
    say("agent", "proved", sequence=values["current"])


def start_again() -> None:
    """Become whatever version is to run now; returns only if there is no such command, or it cannot be run."""
    try:
        command = json.loads(os.environ.get(AGAIN, ""))
        os.execve(command[0], command, os.environ)  # noqa: S606 - no shell is wanted
    except (OSError, ValueError, IndexError, TypeError) as error:
        say("agent", "not_started_again", why=error)
