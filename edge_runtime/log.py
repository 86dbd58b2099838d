"""One line for one transition on standard error, `at=... who=... event=... key=value`, for journald and people.

Called by the agent and the participant. No payloads, no secrets. The `logging` package is not used: the idle agent
would carry it, and one line is one write.
"""

from __future__ import annotations

import os
import sys
import time


def say(who: str, event: str, **fields: object) -> None:
    """Write the line; values with spaces or quotes are quoted, line breaks removed."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pairs = [f"at={moment}", f"who={who}", f"event={event}"]
    pairs += [f"{key}={_shown(value)}" for key, value in fields.items() if value not in (None, "")]
    try:
        os.write(sys.stderr.fileno(), (" ".join(pairs) + "\n").encode("utf-8", "replace"))
    except (OSError, ValueError):
        return  # whoever read our lines is gone; the work goes on


def _shown(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return '"' + text.replace('"', "'") + '"' if " " in text or '"' in text or "=" in text else text
