"""The Operator service: what the command line and the dashboard do (mTLS, role operator)."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import grpc.aio
import psutil

from aggregator import ledger, stories, tasks
from aggregator.authority import Caller
from aggregator.blobs import Blobs
from aggregator.catalogue import Catalogue, ModelInfo
from aggregator.enrollment import Registrar
from aggregator.interfaces import Clock
from aggregator.operators import Operators
from aggregator.orders import Orders
from aggregator.planning import Package, assumed, plan_to_json
from aggregator.reload import Reload
from aggregator.roster import Roster
from aggregator.runs import Runs
from aggregator.service import chunk_data, with_timeout
from aggregator.service_guard import OPERATORS, guarded, guarded_stream
from aggregator.service_orders import OrderMethods
from aggregator.service_roster import RosterMethods, client_to_pb
from aggregator.service_trust import TrustMethods
from aggregator.store import fleet as store
from aggregator.store import history
from aggregator.store.channels import Promotion
from aggregator.store.engine import Database
from aggregator.store.records import RoundInfo, RunEvent, RunInfo
from fedless import __version__
from fedless.protocol import manifest as manifest_format
from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.v1 import operator_pb2 as pb
from fedless.v1 import operator_pb2_grpc

MB = 1e6
KIB = 1024


class OperatorService(OrderMethods, RosterMethods, TrustMethods, operator_pb2_grpc.OperatorServicer):
    """Claims, clients, blobs and runs; see operator.proto for each method."""

    def __init__(
        self,
        registrar: Registrar,
        database: Database,
        blobs: Blobs,
        runs: Runs,
        orders: Orders,
        holder: Reload,
        clock: Clock,
        progress_timeout_s: float,
    ) -> None:
        super().__init__(registrar.callers, database, orders, clock)
        self.roster = Roster(database, registrar)
        self.holder = holder
        self.operators = Operators(database, registrar, clock)
        registrar.callers.on_operator = self.operators.seen
        self._registrar = registrar
        self._blobs = blobs
        self._runs = runs
        self._progress_timeout_s = progress_timeout_s
        self._catalogue = Catalogue(database, clock)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        operator_pb2_grpc.add_OperatorServicer_to_server(self, server)

    @guarded(OPERATORS)
    async def IssueClaims(self, request: pb.IssueClaimsRequest, _caller: Caller) -> pb.IssueClaimsReply:  # noqa: N802
        """Fresh claims, for new clients or revoked ones."""
        claims = await self._registrar.issue_claims(
            request.count or len(request.client_ids),
            valid_ms=request.valid_ms,
            client_ids=list(request.client_ids),
            labels=dict(request.labels),
        )
        return pb.IssueClaimsReply(
            claims=[
                pb.IssuedClaim(client_id=c.client_id, claim=c.text, expires_at_ms=c.expires_at_ms)
                for c in claims
            ]
        )

    @guarded(OPERATORS)
    async def ListClients(self, _request: pb.ListClientsRequest, _caller: Caller) -> pb.ListClientsReply:  # noqa: N802
        """All clients by id."""
        clients, counts = await self._database.run(lambda c: (store.all_clients(c), history.counts(c)))
        return pb.ListClientsReply(
            clients=[
                client_to_pb(c, dict(counts.get(c.client_id, {})), self.roster.lacks(c)) for c in clients
            ]
        )

    @guarded(OPERATORS)
    async def RevokeClient(self, request: pb.RevokeClientRequest, _caller: Caller) -> pb.RevokeClientReply:  # noqa: N802
        """Puts a client's certificates on the deny list."""
        await self._registrar.revoke(await self.roster.find(request.client_id), request.reason)
        return pb.RevokeClientReply()

    @guarded(OPERATORS)
    async def AddFunction(self, request: pb.AddFunctionRequest, _caller: Caller) -> pb.AddFunctionReply:  # noqa: N802
        """Registers a cloud function; what it is to be deployed with."""
        deployment = await self._registrar.add_function(
            request.client_id, request.platform, request.settings_json
        )
        return pb.AddFunctionReply(deployment_json=deployment)

    @guarded(OPERATORS)
    async def HasBlob(self, request: pb.HasBlobRequest, _caller: Caller) -> pb.HasBlobReply:  # noqa: N802
        """Whether a blob is here."""
        present = await asyncio.to_thread(self._blobs.touch, request.digest)
        size = await asyncio.to_thread(self._blobs.size, request.digest) if present else 0
        return pb.HasBlobReply(present=present, size_bytes=size)

    @guarded(OPERATORS)
    async def PutBlob(self, requests: AsyncIterator[Any], _caller: Caller) -> pb.PutBlobReply:  # noqa: N802
        """Stores bytes under their SHA-256."""
        pieces = with_timeout(requests, self._progress_timeout_s)
        first = await anext(pieces, None)
        if first is None:
            raise PeerError(Code.MALFORMED, "Expected at least one chunk.")
        digest, size = await self._blobs.put(chunk_data(first, pieces))
        return pb.PutBlobReply(digest=digest, size_bytes=size)

    @guarded_stream(OPERATORS)
    async def FetchBlob(  # noqa: N802
        self, request: pb.OperatorBlobRequest, _caller: Caller
    ) -> AsyncIterator[pb.PutBlobChunk]:
        """The bytes of a blob."""
        async for data in self._blobs.read(request.digest):
            yield pb.PutBlobChunk(data=data)

    @guarded(OPERATORS)
    async def StartRun(self, request: pb.StartRunRequest, _caller: Caller) -> pb.RunInfo:  # noqa: N802
        """Begins a run."""
        info = await self._runs.start(
            request.task_toml, request.bundle_digest, request.initial_digest, request.test_set_digest or None
        )
        return _run_to_pb(info)

    @guarded(OPERATORS)
    async def StopRun(self, request: pb.RunRequest, _caller: Caller) -> pb.RunInfo:  # noqa: N802
        """Ends a run."""
        await self._runs.stop(request.run_id)
        return _run_to_pb(await self._runs.show(request.run_id))

    @guarded(OPERATORS)
    async def PauseRun(self, request: pb.RunRequest, _caller: Caller) -> pb.RunInfo:  # noqa: N802
        """Opens no more rounds of a run for now."""
        return _run_to_pb(await self._runs.pause(request.run_id))

    @guarded(OPERATORS)
    async def ResumeRun(self, request: pb.RunRequest, _caller: Caller) -> pb.RunInfo:  # noqa: N802
        """Lets a paused run go on."""
        return _run_to_pb(await self._runs.resume(request.run_id))

    @guarded(OPERATORS)
    async def ListRuns(self, _request: pb.ListRunsRequest, _caller: Caller) -> pb.ListRunsReply:  # noqa: N802
        """All runs."""
        return pb.ListRunsReply(runs=[_run_to_pb(info) for info in await self._runs.list()])

    @guarded(OPERATORS)
    async def ShowRun(self, request: pb.RunRequest, _caller: Caller) -> pb.RunInfo:  # noqa: N802
        """A run with its rounds."""
        return _run_to_pb(await self._runs.show(request.run_id))

    @guarded_stream(OPERATORS)
    async def WatchRun(self, request: pb.WatchRunRequest, _caller: Caller) -> AsyncIterator[pb.RunEvent]:  # noqa: N802
        """Everything that happens in a run."""
        async for event in self._runs.watch(request.run_id, request.after):
            yield _event_to_pb(event)

    @guarded(OPERATORS)
    async def PlanRun(self, request: pb.PlanRunRequest, _caller: Caller) -> pb.PlanRunReply:  # noqa: N802
        """What a run of a task would be like."""
        try:
            settings = tasks.parse(request.task_toml)
        except LocalError as error:  # the operator's mistake, not ours
            raise PeerError(error.code, error.detail, fix=error.fix) from error
        manifest = manifest_format.parse(request.manifest_toml)
        package = Package(manifest, request.bundle_digest, request.bundle_bytes)
        plan = await self._runs.plan(settings, package, assumed(request.assume))
        return pb.PlanRunReply(json=plan_to_json(plan))

    @guarded(OPERATORS)
    async def Why(self, request: pb.WhyRequest, _caller: Caller) -> pb.WhyReply:  # noqa: N802
        """What happened and why."""
        asked = stories.Asked(request.run_id, request.round, request.client_id)
        return pb.WhyReply(json=stories.to_json(await stories.tell(self._database, asked, self.clock())))

    @guarded(OPERATORS)
    async def ShowLedger(  # noqa: N802
        self, request: pb.ShowLedgerRequest, _caller: Caller
    ) -> pb.ShowLedgerReply:
        """Every client's privacy ledger."""
        found = await ledger.statements(self._database, request.delta)
        return pb.ShowLedgerReply(lines=[pb.LedgerLine(**asdict(each)) for each in found])

    @guarded(OPERATORS)
    async def ListModels(self, request: pb.RunRequest, _caller: Caller) -> pb.ListModelsReply:  # noqa: N802
        """A run's model versions."""
        found = await self._catalogue.models(request.run_id)
        return pb.ListModelsReply(models=[_model_to_pb(each) for each in found])

    @guarded(OPERATORS)
    async def ListPromotions(  # noqa: N802
        self, request: pb.ListPromotionsRequest, _caller: Caller
    ) -> pb.ListPromotionsReply:
        """What channels serve, or served."""
        catalogue = self._catalogue
        found = await (catalogue.history(request.channel) if request.channel else catalogue.channels())
        return pb.ListPromotionsReply(promotions=[_promotion_to_pb(each) for each in found])

    @guarded(OPERATORS)
    async def PromoteModel(self, request: pb.PromoteModelRequest, _caller: Caller) -> pb.Promotion:  # noqa: N802
        """Lets a channel serve a model."""
        version = request.version if request.HasField("version") else None
        return _promotion_to_pb(await self._catalogue.promote(request.channel, request.run_id, version))

    @guarded(OPERATORS)
    async def RollBackModel(self, request: pb.RollBackModelRequest, _caller: Caller) -> pb.Promotion:  # noqa: N802
        """Lets a channel serve what it served before."""
        return _promotion_to_pb(await self._catalogue.roll_back(request.channel))

    @guarded(OPERATORS)
    async def Info(self, _request: pb.InfoRequest, caller: Caller) -> pb.InfoReply:  # noqa: N802
        """What this service is."""
        return pb.InfoReply(
            fleet=caller.name.fleet,
            version=__version__,
            rss_mb=psutil.Process().memory_info().rss / MB,
            peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MB,
            authority="local",
            endpoints=wire.endpoints_to_pb(self._registrar.terms.endpoints),
        )


def _run_to_pb(info: RunInfo) -> pb.RunInfo:
    return pb.RunInfo(
        run_id=info.run_id,
        task_name=info.task_name,
        state=info.state.value,
        reason=info.reason,
        rounds_wanted=info.rounds_wanted,
        model_version=info.model_version,
        model_digest=info.model_digest,
        started_at_ms=info.started_at_ms,
        ended_at_ms=info.ended_at_ms,
        rounds=[_round_to_pb(each) for each in info.rounds],
    )


def _round_to_pb(info: RoundInfo) -> pb.RoundInfo:
    return pb.RoundInfo(
        round_id=info.round_id,
        number=info.number,
        state=info.state,
        reason=info.reason,
        selected=info.selected,
        checked_in=info.checked_in,
        reported=info.reported,
        examples=info.examples,
        opened_at_ms=info.opened_at_ms,
        ended_at_ms=info.ended_at_ms,
        metrics=info.metrics,
        phases_ms=info.phases_ms,
        losses=info.losses,
        bytes_down=info.bytes_down,
        bytes_up=info.bytes_up,
        mode=info.mode,
        dropouts=info.dropouts,
    )


def _model_to_pb(info: ModelInfo) -> pb.ModelInfo:
    return pb.ModelInfo(
        run_id=info.run_id,
        version=info.version,
        digest=info.digest,
        bundle_digest=info.bundle_digest,
        round=info.number,
        created_at_ms=info.created_at_ms,
        metrics=info.metrics,
        channels=info.channels,
        best=info.is_best,
        personal=[number for each in info.personal for number in each],
    )


def _promotion_to_pb(step: Promotion) -> pb.Promotion:
    return pb.Promotion(
        channel=step.channel,
        sequence=step.sequence,
        what=step.what,
        run_id=step.run_id,
        version=step.version,
        at_ms=step.at_ms,
    )


def _event_to_pb(event: RunEvent) -> pb.RunEvent:
    return pb.RunEvent(
        sequence=event.sequence,
        at_ms=event.at_ms,
        event=event.event,
        round_id=event.round_id,
        client_id=event.client_id,
        json=json.dumps(dict(event.fields), separators=(",", ":"), default=str),
    )
