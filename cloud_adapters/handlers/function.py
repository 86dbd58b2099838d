"""A participant without a device: one invocation, from its payload to a delivered report.

Called by the entry files beside it. It holds no long-lived secret: the ticket is verified with the public keys that
it was deployed with, a key is made for this invocation, and the one-use claim in the payload gets a certificate for
that key. What a process keeps between invocations is a cache of models and bundles, named by digest.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any, Self

from cloud_adapters.handlers.invoked import since_process_start_ms
from cloud_adapters.handlers.objects import local_sources
from cloud_adapters.handlers.states import RESERVE_MS, States
from edge_runtime import link as links
from edge_runtime.bundle import Unpacked
from edge_runtime.cache import Cache
from edge_runtime.checkin import BUDGET_S
from edge_runtime.clock import not_before
from edge_runtime.config import EdgeConfig, Limits
from edge_runtime.instance import Instance
from edge_runtime.invocation import Invocation
from edge_runtime.jobs import Place
from edge_runtime.keystore import Identity, certificates_of, chain_pem
from edge_runtime.link import Link, patiently
from edge_runtime.log import say
from edge_runtime.timings import Timings, monotonic_ms
from fedless.protocol import identity, signed, wire
from fedless.protocol.claim import Claim, authority_digest, parse_claim
from fedless.protocol.cloud import (
    REPORTED,
    Answer,
    Deployment,
    answer_to_values,
    deployment_from_json,
    payload_from_json,
)
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.messages import CHUNK_BYTES, InvocationMetrics, Kind, ReportHeader, Ticket
from fedless.protocol.secagg.policy import from_enrollment

DEPLOYMENT = "fedless-deployment.json"
VARIABLE = "FEDLESS_DEPLOYMENT"
"""The file's path, or its text; without it the file lies beside the packages."""
SCRATCH = "FEDLESS_SCRATCH"
MARGIN_MS = 3_000
"""Kept free at the end of the platform's time limit, to say what happened."""
_CACHE_MB = 256


@dataclass
class Recollection:
    """`Memory` for as long as this process lives."""

    versions: dict[str, int] = field(default_factory=dict)
    masks: bytes = field(default=b"", repr=False)
    facts: dict[str, int] = field(default_factory=dict)

    def set_clock(self, theirs_ms: int, ours_ms: int) -> None:
        """Nothing: a platform keeps its clocks right."""

    def newest_version(self, function: str) -> int:
        """See `Memory`."""
        return self.versions.get(function, 0)

    def saw_version(self, function: str, version: int) -> None:
        """See `Memory`."""
        self.versions[function] = max(version, self.newest_version(function))

    def mask_state(self) -> bytes:
        """See `Memory`."""
        return self.masks

    def mask_mark(self) -> bytes:
        """See `Memory`."""
        return b""

    def save_mask_state(self, state: bytes, mark: bytes) -> None:
        """See `Memory`."""
        del mark
        self.masks = state

    def fact(self, name: str) -> int:
        """See `Memory`."""
        return self.facts.get(name, 0)

    def set_fact(self, name: str, value: int) -> None:
        """See `Memory`."""
        self.facts[name] = value


class Starts:
    """`Instances`: one process, started before the job is known, since the platform isolates this function anyway."""

    def __init__(self, until_ms: float | None) -> None:
        """`until_ms` (monotonic): end the instance then, so that there is time to say so."""
        self._instance = Instance.start()
        self._rung = False
        self._timer = None
        if until_ms is not None:
            self._timer = threading.Timer(max(0.0, (until_ms - monotonic_ms()) / 1000), self._ring)
            self._timer.daemon = True
            self._timer.start()

    def take(
        self, unpacked: Unpacked, model: str, config: EdgeConfig, now_ms: int, place: Place | None = None
    ) -> Instance:
        """See `Instances`."""
        del unpacked, model, config, now_ms, place
        return self._instance

    def rest(self) -> None:
        """See `Instances`: here the instance stays, since the platform counts this function's memory anyway."""

    def confinement(self, unpacked: Unpacked, config: EdgeConfig, memory_mb: int) -> dict[str, object]:
        """See `Instances`."""
        del unpacked, config, memory_mb
        return {}

    def explain(self, error: FedlessError) -> FedlessError:
        """The error, or what lies behind it."""
        if not self._rung:
            return error
        return PeerError(
            Code.INSTANCE_TIMEOUT,
            "The platform's time limit came before the end of the training.",
            fix="Raise the function's time limit, name a folder for `states` in the client's registration, so that "
            "it goes on in another invocation, or give this client less to do (local_epochs, max_steps).",
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what was started."""
        if self._timer is not None:
            self._timer.cancel()
        self._instance.close()

    def _ring(self) -> None:
        self._rung = True
        self._instance.kill()


class CloudFunction:
    """One process of a deployed function; it runs one invocation at a time."""

    def __init__(self, deployment: Deployment, scratch: Path, reserve_ms: int = RESERVE_MS) -> None:
        """`reserve_ms`: kept free behind a training that may have to be gone on with later."""
        self.deployment = deployment
        self._scratch = scratch
        self._reserve_ms = reserve_ms
        self._memory = Recollection()
        self._turn = threading.Lock()
        self._invocations = 0

    def run(self, event: bytes | str | Mapping[str, Any], left_ms: float | None = None) -> dict[str, Any]:
        """One invocation; the answer's JSON values. `left_ms`: the platform's time limit, as it stands now.

        Never raises for what a peer or this deployment did wrong: that is an outcome.
        """
        if not self._turn.acquire(blocking=False):
            return answer_to_values(Answer(Code.BUSY.value, "This process is at work on another invocation."))
        try:
            return answer_to_values(self._run(event, left_ms))
        finally:
            self._turn.release()

    def _run(self, event: bytes | str | Mapping[str, Any], left_ms: float | None) -> Answer:
        begun = monotonic_ms()
        start = "warm" if self._invocations else "cold"
        imported = 0.0 if self._invocations else since_process_start_ms()
        self._invocations += 1
        work = _Work(self.deployment, self._scratch, self._memory, Timings(begun), start, self._reserve_ms)
        outcome, detail = REPORTED, ""
        try:
            work.run(event, begun + left_ms - MARGIN_MS if left_ms is not None else None)
        except FedlessError as error:
            outcome, detail = error.code.value, " ".join(filter(None, (error.detail, error.fix)))
            if error.code is Code.ALREADY_REPORTED:  # an earlier invocation of this wake-up was counted
                outcome, detail = REPORTED, ""
        say("function", "invocation_ended", client=self.deployment.client_id, outcome=outcome, why=detail)
        total = round(monotonic_ms() - begun, 1)
        return Answer(
            outcome, detail, start, total, imported, work.timings.peak_rss_mb, work.bytes_up, work.bytes_down
        )


@dataclass
class _Work:
    """The state of one invocation."""

    deployment: Deployment
    scratch: Path
    memory: Recollection
    timings: Timings
    start: str
    reserve_ms: int
    bytes_up: int = 0
    bytes_down: int = 0

    def run(self, event: bytes | str | Mapping[str, Any], until_ms: float | None) -> None:
        """Judge, join, do the round, deliver. Raises `FedlessError`."""
        payload = payload_from_json(event)
        ticket, claim = self._judge(payload.ticket), parse_claim(payload.claim)
        with Starts(until_ms) as starts:
            at = monotonic_ms()
            own = self._join(claim)
            self.timings.lap("enroll", at)
            places = ticket.endpoints or own.endpoints.fleet
            with Link(places, own.server_name, own.key_pem, own.chain_pem, own.authority_pem) as link:
                try:
                    self._round(ticket, own, link, starts, until_ms)
                    self._tell(link, ticket, REPORTED)
                except FedlessError as error:
                    failure = starts.explain(error)
                    self._tell(link, ticket, failure.code.value)
                    raise failure from error
                finally:
                    self.bytes_up, self.bytes_down = link.bytes_up, link.bytes_down

    def _judge(self, data: bytes) -> Ticket:
        """The ticket, if this fleet's aggregator signed it for this client and it is still good."""
        content = signed.verify_ticket(wire.signed_ticket_from_bytes(data), self.deployment.ticket_keys)
        ticket = wire.ticket_from_bytes(content)
        signed.judge_ticket(ticket, self.deployment.fleet, self.deployment.client_id, not_before(0))
        if ticket.kind not in (Kind.TRAIN, Kind.EVALUATE):
            raise PeerError(
                Code.TICKET_NOT_ALLOWED, f"A function trains and evaluates; it cannot {ticket.kind.name}."
            )
        return ticket

    def _join(self, claim: Claim) -> Identity:
        """A new key, and the certificate that the claim gets for it."""
        here = self.deployment
        authority_pem = here.authority_pem.encode()
        authorities = certificates_of(authority_pem)
        if claim.authority not in map(authority_digest, authorities):
            raise PeerError(
                Code.CLAIM_FOREIGN, fix="If the fleet's authority was replaced, deploy the function again."
            )
        key = identity.new_key()
        name = identity.server_name(here.fleet)
        csr = identity.make_csr(key)
        reply = patiently(
            lambda: links.enroll(claim.address, authority_pem, name, claim.secret, csr), budget_s=BUDGET_S
        )
        whom, proven = identity.verify_chain(
            reply.chain_der, authorities, here.fleet, not_before(reply.now_ms)
        )
        expected = identity.Name(here.fleet, identity.Role.FUNCTION, here.client_id)
        if whom != expected or identity.public_der(proven) != identity.public_der(key.public_key()):
            raise PeerError(Code.FOREIGN_CERTIFICATE, f"The certificate names {whom.uri}.")
        return Identity(
            fleet=here.fleet,
            client_id=here.client_id,
            server_name=name,
            endpoints=reply.endpoints,
            ticket_keys=here.ticket_keys,
            publisher_keys=here.publisher_keys,
            policy=from_enrollment(here.policy),
            chain_pem=chain_pem(reply.chain_der),
            authority_pem=authority_pem,
            key_pem=identity.key_pem(key),
            issued_at_ms=reply.now_ms,
            not_after_ms=not_before(reply.now_ms),
        )

    def _round(
        self, ticket: Ticket, own: Identity, link: Link, starts: Starts, until_ms: float | None
    ) -> None:
        limits = Limits(
            memory_mb=self.deployment.memory_mb, threads=self.deployment.threads, cache_mb=_CACHE_MB
        )
        sources = local_sources(self.deployment.data, self.scratch / "data")
        states = None
        if self.deployment.states and until_ms is not None:
            url, client_id = self.deployment.states, self.deployment.client_id
            states = States(url, client_id, self.scratch, until_ms, self.reserve_ms)
        invocation = Invocation(
            identity=own,
            config=EdgeConfig(limits=limits, data=sources),
            journal=self.memory,
            cache=Cache(self.scratch / "cache", _CACHE_MB << 20),
            functions=self.scratch / "functions",
            link=link,
            starts=starts,
            observe=lambda step, round_id: say("function", step, round=round_id),
            pausing=states,
        )
        finished = invocation.run(ticket, self.timings)
        at = monotonic_ms()
        _deliver(link, finished.header, memoryview(finished.payload))
        self.timings.lap("report", at)
        if states is not None:
            states.forget(ticket)

    def _tell(self, link: Link, ticket: Ticket, outcome: str) -> None:
        """Metrics: worth one attempt, never an error."""
        self.timings.lap("total", self.timings.received)
        metrics = InvocationMetrics(
            round_id=ticket.round_id,
            start=self.start,
            timings_ms=self.timings.phases,
            bytes_down=link.bytes_down,
            bytes_up=link.bytes_up,
            peak_rss_mb=self.timings.peak_rss_mb,
            participant_peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            agent_rss_mb=0.0,
            outcome=outcome,
        )
        try:
            link.put_metrics(metrics)
        except PeerError as error:
            say("function", "metrics_not_taken", code=error.code.value, why=error.detail)


def _deliver(link: Link, header: ReportHeader, payload: memoryview) -> None:
    """Send the report, from where the aggregator has it, for as long as that makes sense."""

    def chunks(offset: int) -> Iterator[bytes]:
        for at in range(offset, len(payload), CHUNK_BYTES):
            yield bytes(payload[at : at + CHUNK_BYTES])

    def send() -> None:
        offset, complete = link.begin_report(header)
        if not complete:
            link.put_report(header.round_id, offset, chunks(offset))

    patiently(send, budget_s=BUDGET_S, link=link)


@once
def deployed() -> CloudFunction:
    """This process's function, as it was deployed. Raises `LocalError` CONFIG_INVALID or STATE_MISSING."""
    given = os.environ.get(VARIABLE, "")
    if given.lstrip().startswith("{"):
        text = given
    else:
        path = Path(given) if given else Path(__file__).parents[2] / DEPLOYMENT
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise LocalError(
                Code.STATE_MISSING,
                f"Expected the deployment of this function in {path} or in {VARIABLE}.",
                fix="Package it with `fedless function package --deployment FILE`.",
            ) from error
    scratch = Path(os.environ.get(SCRATCH) or Path(tempfile.gettempdir()) / "fedless")
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    return CloudFunction(deployment_from_json(text), scratch)


def run(event: bytes | str | Mapping[str, Any], left_ms: float | None = None) -> dict[str, Any]:
    """One invocation of the deployed function: what every entry file calls. The answer's JSON values."""
    try:
        function = deployed()
    except LocalError as error:
        say("function", "not_deployed", why=str(error))
        return answer_to_values(Answer(error.code.value, " ".join(filter(None, (error.detail, error.fix)))))
    return function.run(event, left_ms)
