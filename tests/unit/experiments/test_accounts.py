"""What a run took and cost: numbers that can be checked by hand, and what is measured against what is modelled."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from aggregator.cost import DevicePower, FunctionPower, Rates, Server
from cloud_adapters.billing import Price
from fedless.experiments import ledgers
from fedless.experiments.accounts import Tables, accounts
from fedless.experiments.groups import ClientGroup

SECONDS = 100.0
PRICE = Price("by hand", per_gb_s=0.001, per_request=0.01, per_gb_out=0.0, step_ms=1, least_ms=1)
TABLES = Tables(
    {"aws-lambda": PRICE},
    Rates(
        at=date(2026, 1, 1),
        per_kwh_usd=1000.0,  # a dollar a watt-hour
        devices={"raspberry-pi-4": DevicePower("by hand", 1.0, 10.0, 5.0)},
        servers={"vm-2gb": Server("by hand", per_hour_usd=36.0, vcpus=2, memory_gb=2, watts=36.0)},
        functions=FunctionPower("by hand", watts_per_vcpu=3.6, vcpu_per_gb=1.0, pue=1.0),
    ),
    "vm-2gb",
)
GROUPS = (ClientGroup("edge", 2), ClientGroup("aws-lambda", 1, memory_mb=2048))


def client(**changes: Any) -> dict[str, Any]:
    timings = {"run": 2000.0, "download": 500.0, "report": 500.0, "total": 4000.0}
    return {
        "start": "cold",
        "timings_ms": timings,
        "bytes_down": 1000,
        "bytes_up": 3000,
        "bill": {},
        **changes,
    }


def kept(bill: dict[str, Any]) -> dict[str, Any]:
    clients = {"edge-1": client(), "edge-2": client(start="warm"), "aws-lambda-3": client(bill=bill)}
    return accounts([{"clients": clients}], GROUPS, SECONDS, TABLES)


MEASURED = {"figures": "platform", "billed_ms": 3000, "memory_mb": 2048, "attempts": 2, "gb_s": 6.0}


def test_devices_pay_for_training_transfers_and_waiting() -> None:
    edge = kept(MEASURED)["groups"][0]
    assert (edge["train_s"], edge["transfer_s"], edge["invocations"], edge["cold_starts"]) == (4.0, 2.0, 2, 1)
    watt_seconds = 4 * 10 + 2 * 5 + (2 * SECONDS - 6) * 1
    assert edge["wh"] == pytest.approx(watt_seconds / 3600)
    assert edge["usd"] == pytest.approx(watt_seconds / 3600)
    assert edge["basis"] == "modelled"


def test_a_function_is_billed_by_its_platforms_figures_where_it_tells_them() -> None:
    function = kept(MEASURED)["groups"][1]
    assert function["usd"] == pytest.approx(6 * 0.001 + 2 * 0.01)
    assert (function["basis"], function["requests"], function["gb_s"]) == ("measured", 2, 6.0)
    assert function["wh"] == pytest.approx(6 * 3.6 / 3600)


def test_a_function_without_figures_is_estimated_and_says_so() -> None:
    function = kept({})["groups"][1]
    assert function["usd"] == pytest.approx(4 * 2 * 0.001 + 0.01)
    assert function["basis"] == "modelled"


def test_the_whole_is_modelled_if_a_part_is_and_adds_up() -> None:
    found = kept(MEASURED)
    assert found["clients"]["usd"] == pytest.approx(sum(one["usd"] for one in found["groups"]))
    assert found["clients"]["basis"] == "modelled"
    assert found["aggregator"]["usd"] == pytest.approx(1.0)


def test_otherwise_the_same_work_is_done_by_one_sort_of_client() -> None:
    devices, functions, servers = kept(MEASURED)["otherwise"]
    assert devices["clients"].startswith("3 devices (raspberry-pi-4)")
    assert devices["wh"] == pytest.approx((6 * 10 + 3 * 5 + (3 * SECONDS - 9)) / 3600)
    assert functions["clients"] == "3 functions (aws-lambda, 2048 MB)"
    assert functions["usd"] == pytest.approx(3 * (4 * 2 * 0.001 + 0.01))
    assert servers["usd"] == pytest.approx(3.0)
    assert {one["basis"] for one in (devices, functions, servers)} == {"modelled"}


def test_clients_that_were_never_heard_of_took_nothing() -> None:
    found = accounts([{"clients": {"edge-1": client(timings_ms={})}}], GROUPS, SECONDS, TABLES)
    assert [one["invocations"] for one in found["groups"]] == [0, 0]
    assert found["groups"][1]["usd"] == 0


def test_the_tables_say_what_is_measured() -> None:
    spent = {"cost": {"prices_at": "2026-01-01", **kept(MEASURED)}}
    groups, otherwise = ledgers.tables(spent)
    assert [row[-1] for row in groups.rows] == ["modelled", "measured", "modelled"]
    assert all(len(row) == len(groups.header) for row in groups.rows)
    assert len(otherwise.rows) == 4
    assert ledgers.tables({}) == []


def test_small_amounts_stay_readable() -> None:
    assert [ledgers.dollars(value) for value in (0.0, 1.5, 0.0123, 0.0000096)] == [
        "0",
        "1.5",
        "0.0123",
        "9.6 µ",
    ]
