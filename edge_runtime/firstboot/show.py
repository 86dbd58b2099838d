"""Telling people how the board stands: status file on the boot partition, console banner, LED. Changes only.

Called by `main`. The status file is for whoever puts the card into a computer; the banner stands above the login
prompt and is printed on the consoles when it changes.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from edge_runtime.disk import write_whole
from edge_runtime.firstboot.machine import Machine
from edge_runtime.firstboot.plan import Standing, banner, board_note, pattern, status_text
from edge_runtime.firstboot.settings import STATUS_FILE
from edge_runtime.log import say
from fedless import __version__

BANNER = "/run/issue.d/fedless.issue"
CONSOLE = "/dev/console"
_HEAD_LINES = 3


def show(machine: Machine, standing: Standing) -> bool:
    """Tell it, if it is something else than what stands there; whether it was."""
    told = replace(standing, note=" ".join(filter(None, (standing.note, board_note(machine.model)))))
    lines = banner(told)
    text = status_text(told, machine.host, machine.model, __version__, machine.moment())
    path = machine.boot / STATUS_FILE
    before: list[str] = []
    with contextlib.suppress(OSError):
        before = path.read_text(encoding="utf-8", errors="replace").splitlines()
    machine.led(pattern(told.trouble, busy=told.busy))
    issue = "\n".join([f"fedless {__version__} on \\n", *lines, "", ""])
    fresh = machine.write(BANNER, issue)
    if before[_HEAD_LINES:] != lines:
        try:
            write_whole(path, text.encode(), mode=0o644)
        except OSError as error:
            say("firstboot", "status_not_written", why=error)
    if fresh:
        _on_console(machine, lines)
        machine.run(["agetty", "--reload"], "")
        say("firstboot", "standing", trouble=told.trouble, joined=told.joined, detail=told.detail)
    return fresh


def _on_console(machine: Machine, lines: list[str]) -> None:
    with contextlib.suppress(OSError), machine.at(CONSOLE).open("a", encoding="utf-8") as console:
        console.write("\r\n" + "\r\n".join(f"fedless: {line}" for line in lines) + "\r\n")
