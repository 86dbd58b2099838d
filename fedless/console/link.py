"""The console's only gRPC client: the Operator service, and where a fleet is found.

Blocking. A refusal comes back as the `PeerError` that the aggregator raised; a connection that
cannot be made is `PeerError` AGGREGATOR_UNREACHABLE. Replies are the messages of operator.proto.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import server_name
from fedless.protocol.messages import CHUNK_BYTES, MESSAGE_BYTES_MAX
from fedless.v1 import operator_pb2, operator_pb2_grpc

ERROR_TRAILER = "fedless-error-bin"
CALL_S = 30.0
LEDGER_S = 180.0
"""The service's first accounting imports what it takes, which is seconds, on a busy board many."""
START_S = 120.0
VARIABLE = "FEDLESS_FLEET"
CONFIGURATION = "aggregator.toml"
ClientInfo = operator_pb2.ClientInfo
RunInfo = operator_pb2.RunInfo
RoundInfo = operator_pb2.RoundInfo
RunEvent = operator_pb2.RunEvent
IssuedClaim = operator_pb2.IssuedClaim
ShownClient = operator_pb2.ShowClientReply
FunctionInfo = operator_pb2.FunctionInfo
OperatorInfo = operator_pb2.OperatorInfo
OrderInfo = operator_pb2.OrderInfo
OrderAnswer = operator_pb2.OrderAnswer
GiveOrderRequest = operator_pb2.GiveOrderRequest
Selection = operator_pb2.Selection
ModelInfo = operator_pb2.ModelInfo
LedgerLine = operator_pb2.LedgerLine
Promotion = operator_pb2.Promotion


def find_fleet(given: Path | None) -> Path:
    """The fleet's folder: --fleet, else FEDLESS_FLEET, else here. Raises `LocalError` STATE_MISSING."""
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    folder = named or Path.cwd()
    if (folder / CONFIGURATION).is_file() or (folder / "operator.toml").is_file():
        return folder
    detail = f"Expected {CONFIGURATION} (or operator.toml) in {folder}."
    fix = f"Name the fleet with --fleet DIR or {VARIABLE}, or make one with `fedless init DIR`."
    raise LocalError(Code.STATE_MISSING, detail, fix=fix)


@dataclass(frozen=True)
class Access:
    """How to reach a fleet's operator service and how to prove who we are."""

    fleet: str
    endpoint: str
    authority_pem: bytes
    chain_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"Access({self.fleet!r}, {self.endpoint!r})"


def read_access(folder: Path) -> Access:
    """What a fleet's folder, or its operator folder alone, says. Raises `LocalError` STATE_MISSING."""
    operator = folder if (folder / "operator.toml").is_file() else folder / "operator"
    try:
        settings = tomllib.loads((operator / "operator.toml").read_text("utf-8"))
        endpoints = _running_endpoints(operator.parent) or settings["endpoints"]
        files = [(operator / name).read_bytes() for name in ("authority.pem", "cert.pem", "cert.key")]
    except (OSError, KeyError, ValueError) as error:
        detail = f"Expected operator.toml, authority.pem, cert.pem and cert.key in {operator}; {error}."
        raise LocalError(Code.STATE_MISSING, detail, fix="Restore the folder from a back-up.") from error
    if not endpoints:
        detail = "The fleet's port is chosen when the aggregator starts, and it has not started yet."
        raise PeerError(Code.AGGREGATOR_UNREACHABLE, detail, fix="Start it: `fedless aggregator serve`.")
    return Access(settings["fleet"], endpoints[0], *files)


class Link:
    """A connection to the Operator service; use it as a context manager."""

    def __init__(self, access: Access) -> None:
        self._access = access
        credentials = grpc.ssl_channel_credentials(access.authority_pem, access.key_pem, access.chain_pem)
        options = (
            ("grpc.ssl_target_name_override", server_name(access.fleet)),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", 30_000),
        )
        self._channel = grpc.secure_channel(access.endpoint, credentials, options)
        self._stub = operator_pb2_grpc.OperatorStub(self._channel)

    def __enter__(self) -> Self:
        """The link itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def claims(
        self, count: int, valid_ms: int, client_ids: Sequence[str], labels: Mapping[str, str]
    ) -> list[IssuedClaim]:
        """Fresh claims; `valid_ms` 0 means the configured time."""
        request = operator_pb2.IssueClaimsRequest(
            count=count, valid_ms=valid_ms, client_ids=client_ids, labels=labels
        )
        return list(self._call(self._stub.IssueClaims, request).claims)

    def issue_claims(self, client_ids: Sequence[str]) -> dict[str, str]:
        """One claim for each client id, by id; they are secrets."""
        return {claim.client_id: claim.claim for claim in self.claims(len(client_ids), 0, client_ids, {})}

    def clients(self) -> list[ClientInfo]:
        """All clients by id."""
        return list(self._call(self._stub.ListClients, operator_pb2.ListClientsRequest()).clients)

    def online(self) -> frozenset[str]:
        """The ids of the clients that are connected to the broker."""
        return frozenset(client.client_id for client in self.clients() if client.online)

    def revoke(self, client_id: str, reason: str) -> None:
        """Puts a client's certificates on the deny list."""
        self._call(
            self._stub.RevokeClient, operator_pb2.RevokeClientRequest(client_id=client_id, reason=reason)
        )

    def client(self, client: str) -> ShownClient:
        """What is known of the client with this id or name."""
        shown: ShownClient = self._call(self._stub.ShowClient, operator_pb2.ClientRequest(client=client))
        return shown

    def rename(self, client: str, name: str) -> str:
        """Gives a client a name for people ("": none); its id."""
        request = operator_pb2.RenameClientRequest(client=client, name=name)
        return str(self._call(self._stub.RenameClient, request).client_id)

    def label(self, client: str, labels: Mapping[str, str], gone: Sequence[str]) -> dict[str, str]:
        """Sets and takes labels; all that the client has then."""
        request = operator_pb2.LabelClientRequest(client=client, labels=labels, gone=gone)
        return dict(self._call(self._stub.LabelClient, request).labels)

    def remove(self, client: str) -> str:
        """Revokes a client and forgets it; its id."""
        request = operator_pb2.ClientRequest(client=client)
        return str(self._call(self._stub.RemoveClient, request).client_id)

    def add_function(self, client_id: str, platform: str, settings: Mapping[str, Any]) -> str:
        """Registers a cloud function; what it is to be deployed with, JSON without secrets."""
        request = operator_pb2.AddFunctionRequest(
            client_id=client_id, platform=platform, settings_json=json.dumps(settings)
        )
        return str(self._call(self._stub.AddFunction, request).deployment_json)

    def put(self, data: bytes) -> bytes:
        """Stores bytes under their SHA-256, which is returned; nothing is sent that is already there."""
        digest = hashlib.sha256(data).digest()
        if not self._call(self._stub.HasBlob, operator_pb2.HasBlobRequest(digest=digest)).present:
            stored = self._call(self._stub.PutBlob, _chunks(data), None).digest
            if stored != digest:
                raise PeerError(Code.WRONG_DIGEST, "The aggregator stored other bytes than were sent.")
        return digest

    def fetch(self, digest: bytes) -> Iterator[bytes]:
        """The bytes of a blob, piece by piece; the caller checks the digest."""
        with _refusals(self._access.endpoint):
            for chunk in self._stub.FetchBlob(operator_pb2.OperatorBlobRequest(digest=digest)):
                yield chunk.data

    def start_run(self, task_toml: str, bundle: bytes, initial: bytes, test_set: bytes) -> RunInfo:
        """Begins a run from digests of stored blobs; `test_set` may be empty."""
        request = operator_pb2.StartRunRequest(
            task_toml=task_toml, bundle_digest=bundle, initial_digest=initial, test_set_digest=test_set
        )
        info: RunInfo = self._call(self._stub.StartRun, request, START_S)
        return info

    def stop_run(self, run_id: str) -> RunInfo:
        """Ends a run after its last model."""
        info: RunInfo = self._call(self._stub.StopRun, operator_pb2.RunRequest(run_id=run_id))
        return info

    def pause_run(self, run_id: str) -> RunInfo:
        """Opens no more rounds of a run for now."""
        info: RunInfo = self._call(self._stub.PauseRun, operator_pb2.RunRequest(run_id=run_id))
        return info

    def resume_run(self, run_id: str) -> RunInfo:
        """Lets a paused run go on."""
        info: RunInfo = self._call(self._stub.ResumeRun, operator_pb2.RunRequest(run_id=run_id))
        return info

    def runs(self) -> list[RunInfo]:
        """All runs, without their rounds."""
        return list(self._call(self._stub.ListRuns, operator_pb2.ListRunsRequest()).runs)

    def run(self, run_id: str) -> RunInfo:
        """A run with its rounds."""
        info: RunInfo = self._call(self._stub.ShowRun, operator_pb2.RunRequest(run_id=run_id))
        return info

    def watch(self, run_id: str, after: int = 0) -> Iterator[RunEvent]:
        """A run's events from `after` on; ends with the run."""
        with _refusals(self._access.endpoint):
            yield from self._stub.WatchRun(operator_pb2.WatchRunRequest(run_id=run_id, after=after))

    def plan(
        self, task_toml: str, manifest_toml: str, bundle: bytes, size_bytes: int, assume: Mapping[str, float]
    ) -> dict[str, Any]:
        """What a run would be like: the fields of `aggregator.plan.Plan`. `bundle` is a digest, perhaps empty."""
        request = operator_pb2.PlanRunRequest(
            task_toml=task_toml,
            manifest_toml=manifest_toml,
            bundle_digest=bundle,
            bundle_bytes=size_bytes,
            assume=assume,
        )
        plan: dict[str, Any] = json.loads(self._call(self._stub.PlanRun, request, START_S).json)
        return plan

    def why(self, run_id: str, number: int, client_id: str) -> dict[str, Any]:
        """What happened and why: the fields of `aggregator.why.Story`. `number` 0: the run; `client_id` "": all."""
        request = operator_pb2.WhyRequest(run_id=run_id, round=number, client_id=client_id)
        story: dict[str, Any] = json.loads(self._call(self._stub.Why, request).json)
        return story

    def ledger(self, delta: float) -> list[LedgerLine]:
        """Every client's privacy ledger, with its epsilon at this delta."""
        request = operator_pb2.ShowLedgerRequest(delta=delta)
        return list(self._call(self._stub.ShowLedger, request, LEDGER_S).lines)

    def models(self, run_id: str) -> list[ModelInfo]:
        """A run's model versions, oldest first."""
        return list(self._call(self._stub.ListModels, operator_pb2.RunRequest(run_id=run_id)).models)

    def promotions(self, channel: str = "") -> list[Promotion]:
        """What a channel served, oldest first; without a name, what each channel serves now."""
        request = operator_pb2.ListPromotionsRequest(channel=channel)
        return list(self._call(self._stub.ListPromotions, request).promotions)

    def promote(self, channel: str, run_id: str, version: int | None) -> Promotion:
        """Lets a channel serve a version; None: the run's best."""
        request = operator_pb2.PromoteModelRequest(channel=channel, run_id=run_id, version=version)
        step: Promotion = self._call(self._stub.PromoteModel, request)
        return step

    def roll_back(self, channel: str) -> Promotion:
        """Lets a channel serve what it served before."""
        request = operator_pb2.RollBackModelRequest(channel=channel)
        step: Promotion = self._call(self._stub.RollBackModel, request)
        return step

    def info(self) -> operator_pb2.InfoReply:
        """What the service says of itself."""
        info: operator_pb2.InfoReply = self._call(self._stub.Info, operator_pb2.InfoRequest())
        return info

    def reload(self) -> list[str]:
        """Lets the service take the fleet's keys and authorities up from their files; what had changed."""
        return list(self._call(self._stub.Reload, operator_pb2.ReloadRequest(), START_S).changed)

    def operators(self) -> tuple[list[OperatorInfo], str]:
        """The certificates of operators that are known, and the serial of the one that this link uses."""
        reply = self._call(self._stub.ListOperators, operator_pb2.ListOperatorsRequest())
        return list(reply.operators), reply.own_serial

    def revoke_operator(self, operator: str, certificate_pem: bytes, reason: str) -> list[str]:
        """Takes certificates of operators: a serial's, a name's, or the one given; their serials."""
        request = operator_pb2.RevokeOperatorRequest(
            operator=operator, certificate_pem=certificate_pem, reason=reason
        )
        return list(self._call(self._stub.RevokeOperator, request).serials)

    def push_function(self, bundle_digest: bytes) -> FunctionInfo:
        """Makes a stored bundle the newest version of its function."""
        request = operator_pb2.PushFunctionRequest(bundle_digest=bundle_digest)
        info: FunctionInfo = self._call(self._stub.PushFunction, request)
        return info

    def functions(self) -> list[FunctionInfo]:
        """All pushed versions, by name, the newest first."""
        return list(self._call(self._stub.ListFunctions, operator_pb2.ListFunctionsRequest()).functions)

    def roll_back_function(self, name: str) -> FunctionInfo:
        """Gives the newest version up; the one that serves then."""
        request = operator_pb2.RollBackFunctionRequest(name=name)
        info: FunctionInfo = self._call(self._stub.RollBackFunction, request)
        return info

    def give_order(self, request: GiveOrderRequest) -> OrderInfo:
        """Asks devices for something."""
        info: OrderInfo = self._call(self._stub.GiveOrder, request)
        return info

    def order(self, order_id: int, settled: int = 0, *, wait: bool = False) -> OrderInfo:
        """An order with all its answers; with `wait` once there are more than `settled`, or after 25 s."""
        request = operator_pb2.ShowOrderRequest(order_id=order_id, settled=settled, wait=wait)
        info: OrderInfo = self._call(self._stub.ShowOrder, request)
        more = info.more
        while more:
            after = info.answers[-1].client_id
            request = operator_pb2.ShowOrderRequest(order_id=order_id, after=after)
            further = self._call(self._stub.ShowOrder, request)
            info.answers.extend(further.answers)
            more = further.more
        return info

    def orders(self) -> list[OrderInfo]:
        """All orders that are kept, the newest first."""
        return list(self._call(self._stub.ListOrders, operator_pb2.ListOrdersRequest()).orders)

    def _call(self, method: Any, request: Any, timeout_s: float | None = CALL_S) -> Any:  # noqa: ANN401 - generated
        with _refusals(self._access.endpoint):
            return method(request, timeout=timeout_s)


def open_link(folder: Path) -> Link:
    """The link of a fleet's folder, or of an operator folder."""
    return Link(read_access(folder))


def _running_endpoints(fleet: Path) -> list[str]:
    """Where a service in this folder said that it listens; [] when the folder is not the fleet's."""
    try:
        values: dict[str, list[str]] = json.loads((fleet / "state" / "endpoints.json").read_text("utf-8"))
    except FileNotFoundError:
        return []
    return values["operator"]


def _chunks(data: bytes) -> Iterator[operator_pb2.PutBlobChunk]:
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        yield operator_pb2.PutBlobChunk(data=data[start : start + CHUNK_BYTES])


@contextmanager
def _refusals(endpoint: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        _raise(error, endpoint)


def _raise(error: Any, endpoint: str) -> NoReturn:  # noqa: ANN401 - grpc.RpcError has no public type of its own
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_TRAILER:
            raise wire.error_from_bytes(value) from error
    if "CERTIFICATE_VERIFY_FAILED" in (error.details() or ""):
        detail = f"What answers at {endpoint} is not this fleet's aggregator."
        raise PeerError(Code.FOREIGN_CERTIFICATE, detail, fix="Check --fleet and the address.") from error
    if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        detail = f"Nothing answered at {endpoint} ({error.code().name.lower()})."
        fix = "Start it with `fedless aggregator serve`, or check the address in operator.toml."
        raise PeerError(Code.AGGREGATOR_UNREACHABLE, detail, fix=fix) from error
    raise PeerError(Code.INTERNAL, f"{error.code().name}: {error.details()}") from error
