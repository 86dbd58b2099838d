"""Money and energy: known numbers by hand, sums that stay honest, and the tables that come with the package."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import cost, rates
from aggregator.cost import Amount, Basis, DevicePower, DeviceUse, FunctionPower, FunctionUse, Server
from cloud_adapters import prices
from cloud_adapters.base import Figures
from cloud_adapters.billing import Price
from fedless.protocol.errors import Code, LocalError

PI = DevicePower("by hand", idle_w=2.0, train_w=6.0, transfer_w=4.0, per_gb_usd=5.0)
LAMBDA = Price("by hand", per_gb_s=0.00001, per_request=0.0000002, per_gb_out=0.09, step_ms=100, least_ms=200)
CLOUD = FunctionPower("by hand", watts_per_vcpu=2.0, vcpu_per_gb=0.5, pue=1.2)


def test_a_device_pays_for_its_watts_and_its_line() -> None:
    use = DeviceUse(train_s=3600, transfer_s=1800, idle_s=3600, bytes_moved=2_000_000_000)
    spent = cost.device(use, PI, per_kwh_usd=0.25)
    assert spent.wh == pytest.approx(6 + 2 + 2)
    assert spent.usd == pytest.approx(0.010 * 0.25 + 2 * 5.0)
    assert spent.basis is Basis.MODELLED


def test_an_invocation_is_billed_in_steps() -> None:
    use = FunctionUse(billed_ms=1501, memory_mb=2048, attempts=2, bytes_out=1_000_000_000, measured=True)
    spent = cost.function(use, LAMBDA, CLOUD)
    assert spent.usd == pytest.approx(3.2 * 0.00001 + 2 * 0.0000002 + 0.09)
    assert spent.wh == pytest.approx(3.2 * 0.5 * 2.0 * 1.2 / 3600)
    assert spent.basis is Basis.MEASURED
    short = cost.function(FunctionUse(billed_ms=1, memory_mb=1024), LAMBDA, CLOUD)
    assert short.usd == pytest.approx(0.2 * 0.00001 + 0.0000002)
    assert short.basis is Basis.MODELLED


def test_a_vcpu_is_paid_for_beside_the_memory() -> None:
    price = Price("by hand", 0.0, 0.0, 0.0, step_ms=1, least_ms=1, per_vcpu_s=0.00002, vcpu_per_gb=0.5)
    assert cost.function(FunctionUse(1000, 2048), price, CLOUD).usd == pytest.approx(2 * 0.5 * 0.00002)


def test_servers_are_paid_for_whatever_they_do() -> None:
    spent = cost.servers(100, 1800, Server("by hand", per_hour_usd=0.02, vcpus=2, memory_gb=2, watts=5))
    assert spent.usd == pytest.approx(1.0)
    assert spent.wh == pytest.approx(250)


@given(st.lists(st.sampled_from(list(Basis)), max_size=6))
def test_a_sum_with_a_modelled_part_is_modelled(parts: list[Basis]) -> None:
    sums = cost.total(Amount(1.0, 2.0, basis) for basis in parts)
    assert (sums.usd, sums.wh) == (len(parts), 2 * len(parts))
    assert (sums.basis is Basis.MODELLED) == (Basis.MODELLED in parts)


def test_the_aggregator_and_the_reports_bill_an_invocation_alike() -> None:
    table = prices.load()
    figures = Figures("platform", billed_ms=1234.5, memory_mb=1024)
    for platform, price in table.by_platform.items():
        told = table.cost(platform, figures, attempts=2, bytes_out=5_000_000)
        assert told is not None
        use = FunctionUse(1234.5, 1024, attempts=2, bytes_out=5_000_000, measured=True)
        assert told.usd == pytest.approx(cost.function(use, price, CLOUD).usd)


def test_the_table_that_comes_with_the_package_is_plausible() -> None:
    table = rates.load()
    assert table.at >= date(2026, 1, 1)
    assert table.devices
    assert table.servers
    for power in table.devices.values():
        assert 0 < power.idle_w < power.transfer_w <= power.train_w
        assert power.source
    assert table.functions.pue >= 1


@pytest.mark.parametrize(
    "change",
    [
        ("idle_w = 2.7", 'idle_w = "much"'),
        ("idle_w = 2.7", "idle_w = -1"),
        ("idle_w = 2.7", "watts = 2.7"),
        ("at = 2026-11-28", 'at = "yesterday"'),
        ("per_kwh_usd = 0.17\n", "per_kwh_usd = nan\n"),
        ("\n[functions]", "\n[machines]"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    text = (Path(prices.__file__).with_name(rates.OWN_TABLE)).read_text()
    assert change[0] in text
    (tmp_path / "power.toml").write_text(text.replace(*change, 1))
    with pytest.raises(LocalError) as caught:
        rates.load(tmp_path / "power.toml")
    assert caught.value.code is Code.CONFIG_INVALID
