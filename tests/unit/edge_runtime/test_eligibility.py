"""Each rule says no at its own bound, the longest wait counts, and what a device cannot tell is no obstacle."""

from __future__ import annotations

import pytest

from edge_runtime.eligibility import Readings, Rules, Verdict, judge

NOW = 1_000_000_000
MINUTE = 60_000


def verdict(rules: Rules | None = None, **readings: object) -> Verdict:
    return judge(rules or Rules(), Readings(**readings), NOW)  # type: ignore[arg-type]


def test_a_device_that_can_tell_nothing_may_train() -> None:
    assert verdict() == Verdict()


@pytest.mark.parametrize(
    ("rules", "bad", "good"),
    [
        (Rules(mains_only=True), {"mains": False, "battery": 1.0}, {"mains": True}),
        (Rules(), {"mains": False, "battery": 0.29}, {"mains": False, "battery": 0.3}),
        (Rules(), {"under_voltage": True}, {"under_voltage": False}),
        (Rules(), {"temperature_c": 80.1}, {"temperature_c": 80.0}),
        (Rules(max_load=1.0), {"load": 1.1}, {"load": 1.0}),
        (Rules(), {"free_mb": 63}, {"free_mb": 64}),
        (Rules(), {"metered": True, "used_bytes": 100 << 20}, {"metered": True, "used_bytes": (100 << 20) - 1}),
        (Rules(), {"metered": True, "used_bytes": 1 << 40}, {"metered": False, "used_bytes": 1 << 40}),
        (Rules(min_link_mbit=10.0), {"link_mbit": 2.0}, {"link_mbit": 100.0}),
        (Rules(quiet=(60, 120)), {"minute": 60}, {"minute": 120}),
        (Rules(quiet=(1380, 360)), {"minute": 1400}, {"minute": 360}),
    ],
)  # fmt: skip
def test_rule_at_its_bound(rules: Rules, bad: dict[str, object], good: dict[str, object]) -> None:
    assert not verdict(rules, **bad).eligible
    assert verdict(rules, **bad).not_before_ms > NOW
    assert verdict(rules, **good).eligible


def test_low_battery_on_mains_is_no_reason() -> None:
    assert verdict(mains=True, battery=0.05).eligible


def test_quiet_hours_over_midnight_end_in_the_morning() -> None:
    rules = Rules(quiet=(22 * 60, 6 * 60))
    assert verdict(rules, minute=23 * 60).not_before_ms == NOW + 7 * 60 * MINUTE
    assert verdict(rules, minute=5 * 60).not_before_ms == NOW + 60 * MINUTE
    assert verdict(rules, minute=5 * 60).reason == "it is quiet until 06:00"


def test_longest_wait_counts_and_all_reasons_are_told() -> None:
    found = verdict(Rules(quiet=(0, 600)), minute=0, temperature_c=90.0, free_mb=1)
    assert found.not_before_ms == NOW + 600 * MINUTE
    assert len(found.reasons) == 3


def test_a_spent_byte_budget_lasts_until_midnight() -> None:
    found = verdict(metered=True, used_bytes=1 << 40, minute=1439)
    assert found.not_before_ms == NOW + MINUTE
