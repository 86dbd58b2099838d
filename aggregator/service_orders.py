"""The Operator's methods for functions on devices: pushed bundles, orders, their answers.

Authenticate, decode, call, encode; see operator.proto for each method. Part of the Operator service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from aggregator.authority import Caller, Callers
from aggregator.interfaces import Clock
from aggregator.orders import Orders, Wish
from aggregator.service_guard import OPERATORS, Guarded, guarded
from aggregator.store import fleet
from aggregator.store import orders as store
from aggregator.store.engine import Database
from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import EVENT_BYTES_MAX, Action, Order
from fedless.v1 import operator_pb2 as pb

ANSWERS_AT_ONCE = 200
ANSWER_BYTES_AT_ONCE = 2 * 1024 * 1024


class OrderMethods(Guarded):
    """Functions on devices, as the operator sees them."""

    def __init__(self, callers: Callers, database: Database, orders: Orders, clock: Clock) -> None:
        super().__init__(callers, clock)
        self._database = database
        self._orders = orders

    @guarded(OPERATORS)
    async def PushFunction(self, request: pb.PushFunctionRequest, _caller: Caller) -> pb.FunctionInfo:  # noqa: N802
        """Makes a stored bundle the newest version of its function."""
        return await self._function(await self._orders.push(request.bundle_digest))

    @guarded(OPERATORS)
    async def ListFunctions(  # noqa: N802
        self, _request: pb.ListFunctionsRequest, _caller: Caller
    ) -> pb.ListFunctionsReply:
        """All pushed versions."""
        rows = await self._orders.functions()
        clients = await self._database.run(fleet.all_clients)
        return pb.ListFunctionsReply(functions=_functions_to_pb(rows, clients))

    @guarded(OPERATORS)
    async def RollBackFunction(  # noqa: N802
        self, request: pb.RollBackFunctionRequest, _caller: Caller
    ) -> pb.FunctionInfo:
        """Gives the newest version up."""
        return await self._function(await self._orders.roll_back(request.name))

    @guarded(OPERATORS)
    async def GiveOrder(self, request: pb.GiveOrderRequest, _caller: Caller) -> pb.OrderInfo:  # noqa: N802
        """Asks devices for something."""
        return _order_to_pb(await self._orders.give(_wish(request)))

    @guarded(OPERATORS)
    async def ShowOrder(self, request: pb.ShowOrderRequest, _caller: Caller) -> pb.OrderInfo:  # noqa: N802
        """An order and its answers, as many as fit into one message."""
        order = await self._orders.show(request.order_id, request.settled, wait=request.wait)
        info, size = _order_to_pb(order), 0
        parts = await self._orders.answers(request.order_id, request.after, ANSWERS_AT_ONCE + 1)
        for count, part in enumerate(parts):
            size += len(part.result.answer)
            if count and (count >= ANSWERS_AT_ONCE or size > ANSWER_BYTES_AT_ONCE):
                info.more = True
                break
            info.answers.append(_answer_to_pb(part))
        return info

    @guarded(OPERATORS)
    async def ListOrders(self, _request: pb.ListOrdersRequest, _caller: Caller) -> pb.ListOrdersReply:  # noqa: N802
        """All orders that are kept, the newest first."""
        return pb.ListOrdersReply(orders=[_order_to_pb(order) for order in await self._orders.every()])

    async def _function(self, row: store.BundleRow) -> pb.FunctionInfo:
        rows = [each for each in await self._orders.functions() if each.name == row.name]
        clients = await self._database.run(fleet.all_clients)
        return next(info for info in _functions_to_pb(rows, clients) if info.version == row.version)


def _wish(request: pb.GiveOrderRequest) -> Wish:
    """Raises `PeerError` MALFORMED."""
    if request.action not in set(Action):
        raise PeerError(
            Code.MALFORMED, f"Expected one of {', '.join(Action)}, found {request.action[:40]!r}."
        )
    try:
        event = request.event.decode() or "null"
    except UnicodeDecodeError as error:
        raise PeerError(Code.MALFORMED, "Expected the event in UTF-8.") from error
    wire.json_text(event, EVENT_BYTES_MAX, "event")
    return Wish(
        request_id=request.request_id,
        order=Order(Action(request.action), request.function, event, request.timeout_ms),
        version=request.version,
        valid_ms=request.valid_ms,
        client_ids=sorted(set(request.selection.client_ids)),
        labels=dict(request.selection.labels),
        every=request.selection.all,
    )


def _functions_to_pb(
    rows: Sequence[store.BundleRow], clients: Sequence[fleet.ClientRow]
) -> list[pb.FunctionInfo]:
    """Each version with how many devices said that they have it, or gave it up."""
    have, gave_up = Counter[str](), Counter[str]()
    for client in clients:
        for told in client.profile.get("functions", ()) if client.state == fleet.ENROLLED else ():
            have[told["digest"]] += 1
            gave_up[told["digest"]] += bool(told["given_up"])
    serving: dict[str, int] = {}
    for row in rows:  # the newest first
        if not row.given_up:
            serving.setdefault(row.name, row.version)
    return [_function_to_pb(row, serving, have, gave_up) for row in rows]


def _function_to_pb(
    row: store.BundleRow, serving: Mapping[str, int], have: Mapping[str, int], gave_up: Mapping[str, int]
) -> pb.FunctionInfo:
    return pb.FunctionInfo(
        name=row.name,
        version=row.version,
        bundle_digest=row.digest,
        pushed_at_ms=row.pushed_at_ms,
        given_up=row.given_up,
        serves=serving.get(row.name) == row.version,
        devices=have[row.digest.hex()],
        gave_up=gave_up[row.digest.hex()],
    )


def _order_to_pb(order: store.OrderRow) -> pb.OrderInfo:
    return pb.OrderInfo(
        order_id=order.order_id,
        action=order.action,
        function=order.function,
        version=order.version,
        given_at_ms=order.given_at_ms,
        deadline_at_ms=order.deadline_at_ms,
        clients=order.clients,
        settled=order.settled,
    )


def _answer_to_pb(part: store.AnswerRow) -> pb.OrderAnswer:
    result = part.result
    return pb.OrderAnswer(
        client_id=part.client_id,
        outcome=result.outcome,
        detail=result.detail,
        answer=result.answer.encode(),
        version=result.version,
        start=result.start,
        timings_ms=result.timings_ms,
        peak_rss_mb=result.peak_rss_mb,
        settled_at_ms=part.settled_at_ms,
    )
