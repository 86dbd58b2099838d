"""Key epochs: their set-up (M0 to M3) with the clients of a run, before rounds in pairwise mode.

What is allowed is decided by `fedless.protocol.secagg.assembly`; here it is stored, then said. The driver of a run
asks for a usable key epoch; the gRPC service brings the clients' messages. Long polls hold a call until there is
something to say, for at most 25 s. After a restart a set-up goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import Connection

from aggregator.epoch_records import EpochRecords, LiveEpoch, Signing
from aggregator.members import Terms
from aggregator.store import masks, rounds
from aggregator.store.masks import KeyEpoch
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import LONG_POLL_MS, CheckIn, Encoding, Kind, Mode, NotNow, Offer
from fedless.protocol.secagg import assembly, codec, epochs
from fedless.protocol.secagg.assembly import ServerEpoch
from fedless.protocol.secagg.messages import EpochKeys, EpochShares

__all__ = ["KeyEpochs", "LiveEpoch", "Signing"]
DAY_MS = 86_400_000
VALID_DAYS = 7
"""Certificates of members must be valid for as long as a key epoch may last."""
TIMER_SLICE_MS = 500


class KeyEpochs(EpochRecords):
    """Sets up key epochs and keeps those in use."""

    # -- called by the run's driver

    async def usable(self, run_id: str, present: frozenset[str]) -> list[LiveEpoch]:
        """The run's key epochs of which a further slot can be opened; those of which none can are ended here.

        `present`: clients that are enrolled and not revoked. Set-ups that were under way are completed first; if
        nothing is usable, and only then, the failure of one is raised.
        """
        found = await self._database.run(lambda c: masks.open_epochs(c, run_id))
        lives = [self._live.setdefault(value.epoch, LiveEpoch(value)) for value in found]
        return await _usable_of([self._usable(live, present) for live in lives])

    async def _usable(self, live: LiveEpoch, present: frozenset[str]) -> LiveEpoch | None:
        if not live.value.state.members:
            return await self._set_up(live)
        gone = sum(client_id not in present for client_id in live.value.members)
        if not live.value.state.is_over(gone):
            return live
        await self.end(live, _why_over(live.value.state, gone))
        return None

    async def set_up_failed(self, run_id: str) -> bool:
        """Whether too few clients came to the run's newest key epoch."""
        return await self._database.run(lambda c: masks.set_up_failed(c, run_id))

    async def open(
        self,
        terms: Terms,
        cohorts: Sequence[Sequence[str]],
        *,
        minimum: int,
        trust: epochs.Trust,
        window_ms: int,
    ) -> list[LiveEpoch]:
        """New key epochs side by side, one with each cohort, once they are usable. `terms`: of a round that they serve.

        The number of slots doubles from one good key epoch to the next (1, 2, 4, ... 16). Each of the two steps
        takes at most `window_ms`. A cohort of which fewer than `minimum` clients join in time is left out; raises
        `PeerError` TOO_FEW when that is so of all.
        """
        now, run_id = self._clock(), terms.run_id

        def work(connection: Connection) -> list[KeyEpoch]:
            slots = epochs.next_slots(masks.longest_epoch(connection, run_id))
            values = []
            for cohort in cohorts:
                number = rounds.next_id(connection, now)
                value = KeyEpoch(
                    epoch=number,
                    run_id=run_id,
                    cohort={client_id: self._tickets.nonce() for client_id in cohort},
                    minimum=minimum,
                    opened_at_ms=now,
                    keys_until_ms=now + window_ms,
                    shares_until_ms=now + 2 * window_ms,
                    state=ServerEpoch(number, slots, trust),
                )
                masks.insert_epoch(connection, value)
                self._note(connection, value, "key_epoch_opened", clients=len(cohort), slots=slots)
                values.append(value)
            return values

        values = await self._database.run(work)
        self._on_step(run_id)
        lives = [self._live.setdefault(value.epoch, LiveEpoch(value)) for value in values]
        return await _usable_of([self._set_up(live) for live in lives])

    # -- the set-up

    async def _set_up(self, live: LiveEpoch) -> LiveEpoch:
        self._wake(live)
        try:
            await self._wait(
                live, lambda v: v.state.roster is not None or len(v.state.offers) == len(v.cohort), "keys"
            )
            await self._make_roster(live)
            await self._wait(
                live, lambda v: len(v.state.received) == len(v.state.sealed_roster.entries), "shares"
            )
            await self._activate(live)
        except PeerError as error:
            detail = " ".join(part for part in (error.detail, live.told) if part)
            if not live.value.ended_at_ms:
                await self.end(live, f"{error.code.value}: {detail}")
            raise PeerError(error.code, detail, fix=error.fix) from error
        return live

    def _wake(self, live: LiveEpoch) -> None:
        """Tickets for those who may not have had theirs; a repeat has the same nonce and costs nothing."""
        value = live.value
        state, terms = value.state, ticket_terms(value)
        done = {offer.client_id for offer in state.offers}
        if state.roster is not None:
            received = {known.index for known in state.received}
            entries = enumerate(state.roster.entries, start=1)
            done = set(value.cohort) - {e.client_id for at, e in entries if at not in received}
        for client_id, nonce in value.cohort.items():
            if client_id not in done:
                self.spawn(live, self._tickets.wake(terms, client_id, nonce))

    async def _wait(self, live: LiveEpoch, complete: Callable[[KeyEpoch], bool], what: str) -> None:
        """Until it is complete, or the window for it is over, or too few are left to join."""
        while not complete(live.value) and not live.is_lost:
            until = live.value.keys_until_ms if what == "keys" else live.value.shares_until_ms
            left = until - self._clock()
            if left <= 0:
                return
            changed = asyncio.ensure_future(live.changed.wait())
            slept = asyncio.ensure_future(self._sleep(min(left, TIMER_SLICE_MS)))
            try:
                await asyncio.wait({changed, slept}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                slept.cancel()

    async def _make_roster(self, live: LiveEpoch) -> None:
        async with live.lock:
            value = live.value
            if value.state.roster is not None:
                return
            now = self._clock()
            state = assembly.make_roster(
                value.state,
                minimum=value.minimum,
                graph_seed=self._random(32),
                at_ms=now,
                ends_at_ms=now + VALID_DAYS * DAY_MS,
                verify_member=self._signing.verify_member,
                sign=self._signing.sign,
            )
            changed = replace(value, state=state, shares_until_ms=now + value.window_ms)
            await self._save(live, changed, "roster_made", members=len(state.sealed_roster.entries))

    async def _activate(self, live: LiveEpoch) -> None:
        async with live.lock:
            value = live.value
            state = assembly.activate(value.state, minimum=value.minimum, sign=self._signing.sign)
            await self._save(
                live, replace(value, state=state), "key_epoch_active", members=len(state.members)
            )

    # -- called by the service

    async def is_epoch(self, number: int) -> bool:
        """Whether a ticket's number is that of a key epoch (numbers of rounds are others)."""
        try:
            await self.find(number)
        except PeerError:
            return False
        return True

    async def check_in(self, client_id: str, request: CheckIn) -> Offer | NotNow:
        """The offer to join a key epoch. Raises `PeerError` NOT_IN_COHORT or TICKET_FOREIGN."""
        live = await self.find(request.round_id)
        value = live.value
        nonce = value.cohort.get(client_id)
        if nonce is None:
            raise PeerError(Code.NOT_IN_COHORT, "This client was not asked to join the key epoch.")
        if nonce != request.nonce:
            raise PeerError(Code.TICKET_FOREIGN, "The nonce is not that of this client's ticket.")
        if value.ended_at_ms:
            return NotNow(Code.ROUND_CLOSED.value, 0)
        offer = await self._tickets.offer(ticket_terms(value))
        return replace(offer, epoch_slots=value.state.slots)

    async def post_keys(self, client_id: str, epoch: int, message: bytes) -> None:
        """M0. Raises `PeerError` as `assembly.accept_keys`."""
        live = await self._open(client_id, epoch)
        keys = codec.loads(EpochKeys, message)
        if keys.client_id != client_id:
            raise PeerError(Code.NOT_IN_COHORT, "The keys name another client than the caller.")
        async with live.lock:
            value = live.value
            if _is_in_roster(value.state, keys):
                return
            state = await asyncio.to_thread(
                assembly.accept_keys,
                value.state,
                keys,
                at_ms=self._clock(),
                verify_member=self._signing.verify_member,
            )
            if state is not value.state:
                await self._save(live, replace(value, state=state), "keys_arrived", client_id)

    async def roster(self, client_id: str, epoch: int) -> bytes:
        """M1, when there is one; empty after 25 s without."""
        live = await self._open(client_id, epoch)
        state = await self._news(live, client_id, lambda v: v.state.roster is not None)
        if state.roster is None:
            return b""
        state.roster.index_of(client_id)
        return codec.dumps(state.roster)

    async def post_shares(self, client_id: str, epoch: int, message: bytes) -> None:
        """M2. Raises `PeerError` as `assembly.accept_shares`."""
        live = await self._open(client_id, epoch)
        shares = codec.loads(EpochShares, message)
        async with live.lock:
            value = live.value
            if value.state.sealed_roster.index_of(client_id) != shares.index:
                raise PeerError(Code.NOT_IN_COHORT, "The shares name another member than the caller.")
            state = assembly.accept_shares(value.state, shares)
            if state is not value.state:
                changed = replace(value, state=state)
                await self._save(live, changed, "shares_arrived", client_id, shares=shares)

    async def inbox(self, client_id: str, epoch: int) -> bytes:
        """M3, when E is fixed; empty after 25 s without."""
        live = await self._open(client_id, epoch)
        state = await self._news(live, client_id, lambda v: bool(v.state.members))
        if not state.members:
            return b""
        index = state.sealed_roster.index_of(client_id)
        rows = await self._database.run(lambda c: masks.load_shares(c, epoch))
        return codec.dumps(assembly.inbox_for(state, index, rows))

    async def _news(self, live: LiveEpoch, client_id: str, there: Callable[[KeyEpoch], bool]) -> ServerEpoch:
        """The key epoch when there is something to say, or after 25 s. Raises `PeerError` if it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONG_POLL_MS / 1000):
                while not there(live.value) and not live.value.ended_at_ms:
                    await live.changed.wait()
        if not there(live.value):
            await self.let_go(live.value.run_id)  # the run may have been stopped
        return (await self._open(client_id, live.value.epoch)).value.state


async def _usable_of(works: Sequence[Coroutine[None, None, LiveEpoch | None]]) -> list[LiveEpoch]:
    """Those that are usable, when all are through; a set-up's failure is raised if there is none."""
    found = await asyncio.gather(*works, return_exceptions=True)
    usable = [each for each in found if isinstance(each, LiveEpoch)]
    for each in found:
        if isinstance(each, BaseException) and not (usable and isinstance(each, PeerError)):
            raise each
    return usable


def _is_in_roster(state: ServerEpoch, keys: EpochKeys) -> bool:
    """Whether these keys are in the roster; raises `PeerError` CONFLICTING_REPEAT if others of this client are."""
    entries = state.roster.entries if state.roster is not None else ()
    for entry in entries:
        if entry.client_id == keys.client_id and entry != keys:
            raise PeerError(Code.CONFLICTING_REPEAT, f"Other keys for key epoch {state.epoch} are here.")
    return keys in entries


def ticket_terms(value: KeyEpoch) -> Terms:
    """A key epoch as tickets and offers know it: its number stands for the round's."""
    return Terms(
        round_id=value.epoch,
        run_id=value.run_id,
        number=0,
        kind=Kind.EPOCH,
        model_version=0,
        goal=len(value.cohort),
        minimum=value.minimum,
        opened_at_ms=value.opened_at_ms,
        deadline_at_ms=max(value.opened_at_ms + 2 * value.window_ms, value.shares_until_ms) + value.window_ms,
        parameters=0,
        max_examples=1,
        mode=Mode.PAIRWISE,
        encoding=Encoding.RING32,
    )


def _why_over(state: ServerEpoch, gone: int) -> str:
    if state.next_slot >= state.slots:
        return f"used_up: all {state.slots} slots"
    if state.abandoned_in_a_row:
        return f"abandoned: {state.abandoned_in_a_row} rounds in a row"
    return f"{Code.TOO_FEW.value}: {gone} of {len(state.members)} members left the fleet"
