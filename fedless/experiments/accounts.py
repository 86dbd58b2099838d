"""*Pure.* What a run took and cost, by group of clients, and what it would have cost otherwise.

Called by `books` with the rounds of rounds.jsonl; the answer is the `cost` of summary.json, which `report` shows.
Rules: times and bytes are measured, on this machine; a platform's own figures are measured where it tells them; watts
are a profile's. Every amount says which it is (`basis`), and every "what if" is modelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator import cost
from aggregator.cost import Amount, Basis, DeviceUse, FunctionUse, Rates
from cloud_adapters.billing import Price
from fedless.experiments.groups import ClientGroup, client_ids

Round = Mapping[str, Any]
Client = Mapping[str, Any]
DEVICE, PLATFORM, MEMORY_MB = "raspberry-pi-4", "aws-lambda", 1024
"""Of the comparison, where the experiment has no such clients."""
_TRANSFERS = ("download", "report")


@dataclass(frozen=True)
class Tables:
    """What is priced with: functions by platform, everything else by profile, and the always-on server's profile."""

    prices: Mapping[str, Price]
    rates: Rates
    server: str


def accounts(
    rounds: Sequence[Round], groups: Sequence[ClientGroup], seconds: float, tables: Tables
) -> dict[str, Any]:
    """The run's accounts: `seconds` from its start to its end."""
    owners = {client_id: group.label for client_id, group in client_ids(groups)}
    taken: dict[str, list[Client]] = {group.label: [] for group in groups}
    for entry in rounds:
        for client_id, client in entry["clients"].items():
            if client_id in owners and client["timings_ms"]:
                taken[owners[client_id]].append(client)
    rows, amounts = [], []
    for label, clients in taken.items():
        mine = [group for group in groups if group.label == label]
        amount = _spent(mine, clients, seconds, tables)
        amounts.append(amount)
        rows.append(_row(label, mine, clients, amount))
    everybody = [client for clients in taken.values() for client in clients]
    server = cost.servers(1, seconds, tables.rates.servers[tables.server])
    return {
        "power_at": str(tables.rates.at),
        "groups": rows,
        "clients": told(cost.total(amounts)),
        "aggregator": {"profile": tables.server, "seconds": round(seconds, 1), **told(server)},
        "otherwise": _otherwise(groups, everybody, seconds, tables),
    }


def told(amount: Amount) -> dict[str, Any]:
    """An amount as JSON values."""
    return {"usd": amount.usd, "wh": amount.wh, "basis": amount.basis.value}


def _row(
    label: str, groups: Sequence[ClientGroup], clients: Sequence[Client], amount: Amount
) -> dict[str, Any]:
    first = groups[0]
    return {
        "group": label,
        "kind": first.kind,
        "profile": f"{first.memory_mb} MB" if first.functions else first.device or DEVICE,
        "clients": sum(group.count for group in groups),
        "invocations": len(clients),
        "cold_starts": sum(client["start"] == "cold" for client in clients),
        "train_s": _seconds(clients, "run"),
        "transfer_s": _seconds(clients, *_TRANSFERS),
        "bytes_down": sum(client["bytes_down"] for client in clients),
        "bytes_up": sum(client["bytes_up"] for client in clients),
        "requests": sum(_bill(client).get("attempts", 1) for client in clients) if first.functions else 0,
        "gb_s": sum(_bill(client).get("gb_s", 0.0) for client in clients),
        **told(amount),
    }


def _spent(
    groups: Sequence[ClientGroup], clients: Sequence[Client], seconds: float, tables: Tables
) -> Amount:
    """What one group of clients took, in the run as it was."""
    first, count = groups[0], sum(group.count for group in groups)
    if not first.functions:
        return _as_devices(clients, count, seconds, first.device or DEVICE, tables)
    price = tables.prices.get(first.kind)
    if price is None:
        return Amount(basis=Basis.MODELLED)
    return cost.total(
        cost.function(_use(client, first.memory_mb), price, tables.rates.functions) for client in clients
    )


def _use(client: Client, memory_mb: int) -> FunctionUse:
    """One invocation of a function, from its platform's figures or else from its own clock."""
    bill = _bill(client)
    return FunctionUse(
        billed_ms=bill.get("billed_ms") or client["timings_ms"].get("total", 0.0),
        memory_mb=bill.get("memory_mb") or memory_mb,
        attempts=bill.get("attempts", 1),
        bytes_out=client["bytes_up"],
        measured=bill.get("figures") == "platform",
    )


def _as_devices(
    clients: Sequence[Client], count: int, seconds: float, profile: str, tables: Tables
) -> Amount:
    """These invocations on `count` devices that are on for the whole run."""
    train_s, transfer_s = _seconds(clients, "run"), _seconds(clients, *_TRANSFERS)
    use = DeviceUse(
        train_s=train_s,
        transfer_s=transfer_s,
        idle_s=max(0.0, count * seconds - train_s - transfer_s),
        bytes_moved=sum(client["bytes_down"] + client["bytes_up"] for client in clients),
    )
    return cost.device(use, tables.rates.devices[profile], tables.rates.per_kwh_usd)


def _otherwise(
    groups: Sequence[ClientGroup], clients: Sequence[Client], seconds: float, tables: Tables
) -> list[dict[str, Any]]:
    """The same work done by one sort of client alone."""
    count = sum(group.count for group in groups)
    device = next((group.device for group in groups if not group.functions and group.device), DEVICE)
    functions = [group for group in groups if group.functions]
    platform = next((group.kind for group in functions if _priced(group.kind, tables)), PLATFORM)
    memory_mb = functions[0].memory_mb if functions else MEMORY_MB
    found = [
        (f"{count} devices ({device}), on for the run", _as_devices(clients, count, seconds, device, tables)),
        (
            f"{count} always-on servers ({tables.server})",
            cost.servers(count, seconds, tables.rates.servers[tables.server]),
        ),
    ]
    if price := tables.prices.get(platform):
        uses = [
            FunctionUse(client["timings_ms"].get("total", 0.0), memory_mb, 1, client["bytes_up"])
            for client in clients
        ]
        amount = cost.total(cost.function(use, price, tables.rates.functions) for use in uses)
        found.insert(1, (f"{count} functions ({platform}, {memory_mb} MB)", amount))
    return [{"clients": name, **told(amount), "basis": Basis.MODELLED.value} for name, amount in found]


def _priced(platform: str, tables: Tables) -> bool:
    """Whether a platform asks for money at all: one's own machines do not."""
    price = tables.prices.get(platform)
    return price is not None and price.per_gb_s + price.per_vcpu_s > 0


def _seconds(clients: Sequence[Client], *laps: str) -> float:
    total: float = sum(client["timings_ms"].get(lap, 0.0) for client in clients for lap in laps)
    return round(total / 1000, 3)


def _bill(client: Client) -> Mapping[str, Any]:
    bill: Mapping[str, Any] = client.get("bill") or {}
    return bill
