"""A word to systemd, where it listens: ready, alive, stopping. Called by the agent; the protocol is sd_notify(3)."""

from __future__ import annotations

import os
import socket

READY, ALIVE, STOPPING = b"READY=1", b"WATCHDOG=1", b"STOPPING=1"


def notify(word: bytes) -> None:
    """Say it; nothing happens without systemd."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        try:
            link.sendto(word, address)
        except OSError:
            return  # systemd is being restarted; the next word comes in a minute
