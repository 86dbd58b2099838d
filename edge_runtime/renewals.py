"""When a participant gets a new certificate: after a round, when the fleet asks, when nobody has woken it in time.

And when a ticket came that no known key has signed: the fleet may have changed its keys while this device was away.
Called by the participant. A renewal that fails changes nothing; it is written down, and tried again later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.log import say
from fedless.protocol.errors import FedlessError

if TYPE_CHECKING:
    from edge_runtime.functions import Functions
    from edge_runtime.journal import Journal
    from edge_runtime.keystore import Identity
    from edge_runtime.link import Link

ASKED_FOR_KEYS, ASK_AGAIN_MS = "asked_for_keys_at_ms", 3_600_000
"""A ticket by an unknown key makes this device ask for new ones, at most so often."""


@dataclass(frozen=True)
class Renewals:
    """Of one participant. `link` connects to where the device itself thinks the aggregator is."""

    state: Path
    journal: Journal
    link: Callable[[], AbstractContextManager[Link]]

    def renew(self, link: Link, own: Identity) -> Identity:
        """A new certificate, and what the fleet tells with it. Raises `FedlessError`, changing nothing."""
        from edge_runtime.keystore import Keystore  # noqa: PLC0415 - a round without renewal does without
        from edge_runtime.renew import renew  # noqa: PLC0415

        renewed = renew(link, Keystore(self.state), own)
        say("participant", "certificate_renewed", until_ms=renewed.not_after_ms)
        return renewed

    def try_to(self, link: Link, own: Identity, now_ms: int) -> Identity:
        """The same, long before it is urgent: if it fails now, the identity as it was."""
        try:
            return self.renew(link, own)
        except FedlessError as error:
            self.journal.refuse(error.code, error.detail, 0, now_ms)
            say("participant", "certificate_not_renewed", code=error.code.value, why=error.detail)
            return own

    def for_unknown_key(self, own: Identity, now_ms: int) -> Identity:
        """What is known after the fleet was asked for its keys; asked at most once an hour, whoever sends tickets."""
        if 0 <= now_ms - self.journal.fact(ASKED_FOR_KEYS) < ASK_AGAIN_MS:  # the clock may have been set back
            return own
        self.journal.set_fact(ASKED_FOR_KEYS, now_ms)
        with self.link() as link:
            return self.try_to(link, own, now_ms)

    def unasked(self, own: Identity, now_ms: int, functions: Functions, agent_rss_mb: float) -> Identity:
        """If it is due, and no round has taken it along: now, if the device may work, or if it bears no more waiting.

        The fleet gets the device's status over the same connection.
        """
        if not own.renewal_due(now_ms):
            return own
        from edge_runtime import telling  # noqa: PLC0415
        from edge_runtime.config import FILE, load  # noqa: PLC0415

        verdict = telling.fit(load(self.state / FILE), functions)
        if not verdict.eligible and not own.renewal_urgent(now_ms):
            say("participant", "renewal_put_off", why=verdict.reason)
            return own
        with self.link() as link:
            renewed = self.try_to(link, own, now_ms)
            if renewed is not own:
                here = telling.Here(self.state, self.journal, functions, renewed)
                telling.tell_status(link, here, verdict, agent_rss_mb)
        return renewed
