"""Masked rounds on the device: a thin driver of `fedless.protocol.secagg`'s client side, for both modes.

Called by the participant and the invocation. Rule: every function of the pure client returns a new state and
a message; the state (and a report's masked bytes) is in the journal before the message is sent. Each step may
be repeated after a power cut: the same state gives the same message.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from edge_runtime.host import Memory
from edge_runtime.keystore import Identity
from edge_runtime.link import Link, patiently
from edge_runtime.log import say
from fedless.protocol import identity as ids
from fedless.protocol.crypto import ecdsa_sign, ed25519_verify, p256_from_pem
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding, Mode, Offer, ReportHeader, Task, Ticket
from fedless.protocol.secagg import client, codec, helper, ring, setup
from fedless.protocol.secagg.helper_messages import HelperOpen
from fedless.protocol.secagg.messages import Inbox, Member, Roster, RoundOpen, RoundResult, UnmaskRequest
from fedless.protocol.secagg.state import ClientState, leave, mark

LEAVING = frozenset(
    {Code.NOT_IN_COHORT, Code.TOO_FEW, Code.BAD_BOX, Code.CONFLICTING_REPEAT, Code.STATE_OLDER}
)
"""Refusals after which this client gives up the key epoch and joins the next one."""
CALL_BUDGET_S = 20.0
ANSWERED = "answered_round"
Opened = RoundOpen | HelperOpen
T = TypeVar("T")


@dataclass
class Masks:
    """The device's part in masked rounds, over one journal and one link."""

    identity: Identity
    journal: Memory
    link: Link
    observe: Callable[[str, int], None]
    state: ClientState = field(init=False)

    def __post_init__(self) -> None:
        """Load the state that the journal keeps."""
        stored = self.journal.mask_state()
        self.state = codec.loads(ClientState, stored) if stored else ClientState(self.identity.client_id)

    # -- key epochs: M0 to M3

    def stored(self, state: ClientState) -> tuple[bytes, bytes]:
        """A state and its mark, as the journal keeps them."""
        return codec.dumps(state), codec.dumps(mark(state))

    def join(self, ticket: Ticket, offer: Offer, until: float) -> None:
        """Set up key epoch `ticket.round_id` until `until` (monotonic s). Raises `PeerError` NOT_NOW if time ran out.

        What the aggregator or a member did wrong is raised by name; the key epoch is left then.
        """
        epoch = ticket.round_id
        try:
            self._join(epoch, offer.epoch_slots, until)
        except PeerError as error:
            if error.code in LEAVING:
                self._keep(leave(self.state, epoch))
            raise

    def _join(self, epoch: int, slots: int, until: float) -> None:
        begun, keys = setup.begin_epoch(
            self.state,
            epoch,
            slots,
            chain_key=os.urandom(32),
            certificate=self.identity.certificate_der,
            sign=self._sign,
        )
        self._keep(begun)
        self.observe("keys_stored", epoch)
        self._call(lambda: self.link.post_epoch_keys(epoch, codec.dumps(keys)))
        self.observe("keys_sent", epoch)
        if not self.state.epoch(epoch).members:
            roster = codec.loads(Roster, self._wait(lambda: self.link.get_roster(epoch), until))
            joined, shares = setup.accept_roster(
                self.state,
                roster,
                self.identity.policy,
                verify_member=self._verify_member,
                verify_aggregator=self._verify_aggregator,
            )
            self._keep(joined)
            self.observe("shares_stored", epoch)
            self._call(lambda: self.link.post_epoch_shares(epoch, codec.dumps(shares)))
            self.observe("shares_sent", epoch)
        self._accept_inbox(codec.loads(Inbox, self._wait(lambda: self.link.get_inbox(epoch), until)))

    # -- rounds: M4, M5

    def open(self, ticket: Ticket, task: Task, message: bytes, model_digest: bytes) -> Opened:
        """Check an opened round against what this client really has, and bind its slot to it.

        `model_digest`: SHA-256 of the model file's bytes. Raises `PeerError`, as `secagg.client.accept_round` and
        `secagg.helper.accept_helper_round`.
        """
        if task.mode is Mode.HELPER:
            opened = codec.loads(HelperOpen, message)
            self._keep(
                helper.accept_helper_round(
                    opened,
                    self.identity.policy,
                    self.state,
                    model_digest=model_digest,
                    task_digest=ticket.task_digest,
                    verify_aggregator=self._verify_aggregator,
                )
            )
            _check_round(ticket, opened)
            return opened
        opened_round = codec.loads(RoundOpen, message)
        _check_round(ticket, opened_round)
        self._catch_up(opened_round.epoch)
        self._keep(
            client.accept_round(
                self.state,
                opened_round,
                model_digest=model_digest,
                task_digest=ticket.task_digest,
                verify_aggregator=self._verify_aggregator,
                policy=self.identity.policy,
            )
        )
        self.observe("slot_bound", ticket.round_id)
        return opened_round

    def mask(
        self, opened: Opened, update: bytes | bytearray, examples: int, sums: Mapping[str, float]
    ) -> tuple[ReportHeader, memoryview, tuple[bytes, bytes] | None]:
        """The masked report of an update (raw little-endian float32[P]; empty for an evaluation).

        What comes with it is stored in the same transaction as the report; None in helper mode, which has nothing
        to keep. Raises `LocalError` as `ring.encode` and `client.mask_report`.
        """
        means = {extra.name: sums.get(extra.name, math.nan) / examples for extra in opened.encoding.extras}
        delta = np.frombuffer(update, "<f4").copy()
        words = ring.encode(opened.encoding, delta, examples, means, os.urandom(32))
        if isinstance(opened, HelperOpen):
            head = helper.mask_for_helper(
                opened,
                self.identity.client_id,
                self.identity.certificate_der,
                words,
                seed=os.urandom(32),
                sign=self._sign,
            )
            return _header(opened, head.sha256, codec.dumps(head)), words.data.cast("B"), None
        self.state, report = client.mask_report(self.state, opened, words, sign=self._sign)
        header = _header(opened, report.sha256, codec.dumps(report))
        return header, words.data.cast("B"), self.stored(self.state)

    # -- unmasking: M6 to M8

    def answer(self, round_id: int, wait_s: float) -> bool:
        """Answer the unmask request of a round, if one comes within `wait_s`; whether it was answered.

        Raises `PeerError` for a request that this client refuses: a second bitmap, its own bit wrongly set, too few.
        """
        until = time.monotonic() + wait_s
        message = self._wait(lambda: self.link.get_unmask_request(round_id), until, late=b"")
        if not message:
            return False
        request = codec.loads(UnmaskRequest, message)
        if request.open.round_id != round_id:
            raise PeerError(Code.BAD_CONTEXT, "The unmask request is for another round than was asked about.")
        if client.left_out(self.state, request):
            say("participant", "report_left_out", round=round_id)
        answered, response = client.answer_unmask(
            self.state, request, verify_aggregator=self._verify_aggregator
        )
        self._keep(answered)
        self.journal.set_fact(ANSWERED, round_id)
        self.observe("answer_stored", round_id)
        self._call(lambda: self.link.post_unmask_response(round_id, codec.dumps(response)))
        self.observe("answer_sent", round_id)
        return True

    def hear_result(self, round_id: int) -> None:
        """Close the slot of a round that ended, if the aggregator says that it has. Raises `PeerError` TWO_BITMAPS."""
        message = self.link.get_round_result(round_id)
        if message:
            result = codec.loads(RoundResult, message)
            self._keep(client.accept_result(self.state, result, verify_aggregator=self._verify_aggregator))

    # -- inside

    def _catch_up(self, epoch: int) -> None:
        """Before a round: M3 of its key epoch, if it was missed, and how the last round ended that was answered for."""
        if not self.state.epoch(epoch).members:
            self._accept_inbox(codec.loads(Inbox, self._call(lambda: self.link.get_inbox(epoch))))
        answered = self.journal.fact(ANSWERED)
        if answered:
            try:
                self.hear_result(answered)
            except PeerError as error:
                if error.code is Code.TWO_BITMAPS:
                    raise
                say("participant", "result_not_heard", round=answered, code=error.code.value)
            self.journal.set_fact(ANSWERED, 0)

    def _accept_inbox(self, inbox: Inbox) -> None:
        active, failed = setup.accept_inbox(
            self.state, inbox, self.identity.policy, verify_aggregator=self._verify_aggregator
        )
        self._keep(active)
        self.observe("epoch_joined", inbox.epoch)
        if failed:
            say("participant", "boxes_not_opened", epoch=inbox.epoch, senders=",".join(map(str, failed)))

    def _keep(self, state: ClientState) -> None:
        if state is not self.state:
            self.journal.save_mask_state(*self.stored(state))
            self.state = state

    def _call(self, call: Callable[[], T]) -> T:
        return patiently(call, budget_s=CALL_BUDGET_S, link=self.link)

    def _wait(self, ask: Callable[[], bytes], until: float, late: bytes | None = None) -> bytes:
        """Ask again (the aggregator holds each call for up to 25 s) until there is an answer or it is too late."""
        while True:
            message = self._call(ask)
            if message:
                return message
            if time.monotonic() >= until:
                if late is not None:
                    return late
                raise PeerError(Code.NOT_NOW, "The key epoch was not ready in time.")

    def _sign(self, message: bytes) -> bytes:
        return ecdsa_sign(p256_from_pem(self.identity.key_pem), message)

    def _verify_member(self, certificate: bytes, at_ms: int) -> Member:
        name, key = ids.verify_chain([certificate], self.identity.authorities, self.identity.fleet, at_ms)
        if name.role not in ids.CLIENT_ROLES:
            raise PeerError(Code.WRONG_ROLE, f"A {name.role} cannot be a member of a cohort.")
        return Member(name.id, name.role is ids.Role.DEVICE, key)

    def _verify_aggregator(self, signature: bytes, message: bytes) -> bool:
        return any(ed25519_verify(key.public_key, signature, message) for key in self.identity.ticket_keys)


def _check_round(ticket: Ticket, opened: Opened) -> None:
    if (opened.round_id, opened.model_version) != (ticket.round_id, ticket.model_version):
        raise PeerError(Code.BAD_CONTEXT, "The opened round is not the one that the ticket names.")


def _header(opened: Opened, sha256: bytes, head: bytes) -> ReportHeader:
    return ReportHeader(
        round_id=opened.round_id,
        encoding=Encoding.RING16 if opened.encoding.bits == 16 else Encoding.RING32,  # noqa: PLR2004
        length_bytes=opened.encoding.report_bytes,
        sha256=sha256,
        masked=head,
    )
