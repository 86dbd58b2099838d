"""Where a participant's link to the aggregator comes from: made anew, or the one that the last wake-up left open.

A link that stays saves a lingering participant the handshakes of TCP and TLS. It is used again for the same endpoints
with the same identity, and while it is young: a network forgets connections that are silent. The aggregator judges the
certificate with every call, on an old connection as on a new one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.keystore import Identity
    from edge_runtime.link import Link

SILENT_S = 30.0
"""A link that was silent for longer is not used again. Networks forget connections after a minute at the earliest."""


@dataclass
class Links:
    """Of one participant. `keep`: the last link stays open for the next wake-up; `close` ends it."""

    keep: bool = False
    silent_s: float = SILENT_S
    _kept: Link | None = field(init=False, default=None)
    _kept_for: tuple[object, ...] = field(init=False, default=())
    _silent_since: float = field(init=False, default=0.0)
    _doubted: bool = field(init=False, default=False)

    @contextmanager
    def open(self, endpoints: tuple[str, ...], own: Identity) -> Iterator[Link]:
        """A link to these endpoints, which are those of the ticket or else the identity's own."""
        wanted = (
            endpoints or own.endpoints.fleet,
            own.server_name,
            own.key_pem,
            own.chain_pem,
            own.authority_pem,
        )
        self._doubted = False
        link = self._take(wanted) or _connect(*wanted)
        try:
            yield link
        except BaseException:
            link.close()
            raise
        self._leave(link, wanted)

    def doubt(self) -> None:
        """The link in use was not answered well: it is closed behind this use."""
        self._doubted = True

    def close(self) -> None:
        """Close what is open; again is fine."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _take(self, wanted: tuple[object, ...]) -> Link | None:
        """The link that was kept, if it is the one, with its bytes counted from 0."""
        if self._kept_for != wanted or time.monotonic() - self._silent_since > self.silent_s:
            self.close()
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.bytes_down = kept.bytes_up = 0
        return kept

    def _leave(self, link: Link, used_for: tuple[object, ...]) -> None:
        self.close()
        if self.keep and not self._doubted:
            self._kept, self._kept_for, self._silent_since = link, used_for, time.monotonic()
        else:
            link.close()


def _connect(
    endpoints: tuple[str, ...], server_name: str, key_pem: bytes, chain_pem: bytes, authority_pem: bytes
) -> Link:
    from edge_runtime.link import Link  # noqa: PLC0415  (gRPC: after the instance was started)

    return Link(endpoints, server_name, key_pem, chain_pem, authority_pem)
