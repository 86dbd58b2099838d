"""The calling side of the local API: one invocation over the device's Unix socket.

Called by `fedless-edge invoke`; a program on the device may as well use any HTTP client that can do Unix sockets.
"""

from __future__ import annotations

import http.client
import json
import socket

from fedless.protocol.errors import Code, LocalError, PeerError

TIMEOUT_S = 600.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def invoke(path: str, name: str, event: object) -> object:
    """The function's answer, JSON values. Raises `FedlessError` as it was refused, or STATE_MISSING."""
    connection = _Connection(path)
    try:
        connection.request("POST", f"/functions/{name}", json.dumps(event))
        reply = connection.getresponse()
        status, body = reply.status, json.loads(reply.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LocalError(
            Code.STATE_MISSING,
            f"Nobody answers on {path} ({type(error).__name__}).",
            fix="Start the agent (`fedless-edge run`), with `socket` of [local] in edge.toml.",
        ) from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise PeerError(Code.of(body["code"]), body["detail"], fix=body["fix"])
    return body
