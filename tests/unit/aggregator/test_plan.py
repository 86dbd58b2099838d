"""What is predicted, what is refused and what is recommended; each refusal names the nearest thing that works."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from aggregator import feasible, planning
from aggregator.cost import DevicePower, FunctionPower
from aggregator.demand import PARTICIPANT_MB, Assumed, Client, Service, Wanted, Work
from aggregator.pace import Tariff
from aggregator.plan import Plan, foresee
from aggregator.tasks import parse
from cloud_adapters import base
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import Check, Manifest, Model, Tensor
from fedless.protocol.messages import Mode

WANTED = Wanted(
    name="t", mode=Mode.PLAIN, strategy="fedavg", rounds=10, goal=10, minimum=8, woken=13, parameters=1000,
    words=1000, word_bytes=4, epochs=2, batch=32, bundle_bytes=50_000, peak_mb=100, wait_s=600,
)  # fmt: skip
TASK = 'name = "t"\nfunction = "f"\nrounds = 3\nmode = "{mode}"\n[cohort]\nsize = {size}\n{more}'
PACKAGE = planning.Package(
    Manifest(
        "f", 1,
        model=Model(1000, 8, "mse", "0" * 64, (Tensor("w", (1000,), 0),), (), ()),
        check=Check("2.20", "ai-edge-litert 2.1", 1e-7, 1000, 90),
    ),
    b"b" * 32, 5000,
)  # fmt: skip


def measured(count: int, ms: int = 4000, **more: Any) -> list[Client]:
    """Clients that were always there; a round took 1 s to check in, `ms` to report, 3 s of it training."""
    work = Work(wake_ms=1000, work_ms=ms, run_ms=ms - 1000, epochs=2, same=True, peak_mb=120.0)
    return [
        Client(f"c{n}", True, 512, asked=20, reported=20, works=(work,) * 5, **more) for n in range(count)
    ]


def codes(seen: Plan) -> list[Code]:
    return [each.code for each in seen.refusals]


def test_measured_times_are_what_is_predicted() -> None:
    seen = foresee(WANTED, measured(20), Service({"commit": 100.0, "evaluate": 400.0, "aggregate": 1.0}))
    assert seen.refusals == []
    assert seen.round_p50_ms == pytest.approx(5500.0, abs=10)
    assert seen.measured_clients == 20
    assert not any("training time" in line for line in seen.assumptions)
    assert seen.abandoned < 0.01
    assert seen.device_peak_mb == 120.0


def test_epochs_scale_the_training_only() -> None:
    more = foresee(replace(WANTED, epochs=4), measured(20), Service({"commit": 0.0}))
    assert more.round_p50_ms == pytest.approx(5000 + 3000, abs=10)
    bounded = foresee(replace(WANTED, epochs=4, max_steps=5), measured(20), Service({"commit": 0.0}))
    assert bounded.round_p50_ms == pytest.approx(5000, abs=10)


def test_fresh_fleet_is_assumed_and_says_so() -> None:
    seen = foresee(WANTED, [Client(f"c{n}", online=True) for n in range(20)], Service())
    said = " ".join(seen.assumptions)
    for what in ("training time of 20 of 20 clients", "without a past", "presence", "the aggregator adds"):
        assert what in said
    faster = Assumed(examples_per_s=50_000)
    quick = foresee(WANTED, [Client(f"c{n}", online=True) for n in range(20)], Service(), faster)
    assert quick.round_p50_ms < seen.round_p50_ms


def test_bytes_by_hand() -> None:
    seen = foresee(WANTED, measured(20), Service())
    assert (seen.down_bytes, seen.up_bytes, seen.first_bytes) == (4000, 4000, 50_000)
    assert seen.round_bytes == 13 * 8000
    assert seen.run_bytes == 10 * 13 * 8000 + 20 * 50_000
    assert seen.spool_bytes == 13 * 4000
    assert seen.models_bytes == 11 * 4000


def test_too_few_clients_may_still_come() -> None:
    [refusal] = foresee(WANTED, measured(5), Service()).refusals
    assert refusal.code is Code.TOO_FEW
    assert refusal.waits
    assert "enroll 3 more" in refusal.instead
    assert "cohort.size = 5" in refusal.instead
    [final] = foresee(replace(WANTED, wait_s=0), measured(5), Service()).refusals
    assert not final.waits


def test_too_few_for_masks_is_final() -> None:
    wanted = replace(WANTED, mode=Mode.PAIRWISE, goal=8, woken=8, minimum=6, secagg_minimum=8)
    [refusal] = foresee(wanted, measured(7), Service()).refusals
    assert (refusal.code, refusal.waits) == (Code.TOO_FEW, False)
    assert 'mode = "plain"' in refusal.instead


def test_devices_without_the_memory_are_left_out_then_refused() -> None:
    small = [replace(client, memory_mb=120) for client in measured(10)]
    enough = foresee(WANTED, [*measured(10), *small], Service())
    assert enough.refusals == []
    assert any("have too little memory: 100 MB needed (c0, c1" in line for line in enough.advice)
    assert enough.usable == 10
    refused = foresee(WANTED, [*measured(5), *small], Service())
    assert codes(refused) == [Code.INSTANCE_MEMORY]
    assert "a smaller model or batch" in refused.refusals[0].instead


def test_unknown_memory_refuses_nothing() -> None:
    unknown = [replace(client, memory_mb=0) for client in measured(10)]
    assert codes(foresee(WANTED, unknown, Service())) == []


def test_a_bundle_without_a_check_record_refuses_nobody() -> None:
    """What its instance may use at most is no measurement of what it needs."""
    small = [replace(client, memory_mb=480) for client in measured(10)]
    assert codes(foresee(replace(WANTED, peak_mb=0, memory_mb=480), small, Service())) == []
    checked = replace(WANTED, peak_mb=480 - PARTICIPANT_MB, memory_mb=480)
    assert codes(foresee(checked, small, Service())) == []
    assert codes(foresee(replace(checked, peak_mb=checked.peak_mb + 1), small, Service())) == [
        Code.INSTANCE_MEMORY
    ]


def test_deadline_below_measured_times_is_refused_with_one_that_works() -> None:
    tight = replace(WANTED, deadline_ms=3000)
    [refusal] = foresee(tight, measured(20), Service()).refusals
    assert refusal.code is Code.OUT_OF_RANGE
    assert "round.deadline_s = 6" in refusal.instead
    assert codes(foresee(replace(WANTED, deadline_ms=6000), measured(20), Service())) == []


def test_an_assumption_refuses_nothing() -> None:
    slow = Assumed(examples_per_s=0.1)
    seen = foresee(
        replace(WANTED, deadline_ms=3000), [Client(f"c{n}", True) for n in range(20)], Service(), slow
    )
    assert seen.refusals == []
    assert seen.abandoned == pytest.approx(1.0)
    assert any("would be abandoned" in line for line in seen.advice)


def test_helper_mode_is_recommended_to_clients_that_are_often_away() -> None:
    wanted = replace(WANTED, mode=Mode.PAIRWISE, goal=10, woken=10, minimum=7, secagg_minimum=8)
    away = [replace(client, reported=14) for client in measured(20)]
    seen = foresee(wanted, away, Service())
    assert seen.presence == pytest.approx((14 + 2 * 0.95) / 22)
    assert any('mode = "helper"' in line for line in seen.advice)
    assert not any('mode = "helper"' in line for line in foresee(wanted, measured(20), Service()).advice)


def test_a_cohort_that_devices_refuse_is_told_before_they_do() -> None:
    """What an owner allows is not known here; what a device refuses unless its owner says so is."""
    few = replace(WANTED, mode=Mode.PAIRWISE, secagg_minimum=4)
    (line,) = [each for each in foresee(few, measured(20), Service()).advice if "policy" in each]
    assert "secagg.minimum is 4: a device refuses cohorts of fewer than 8" in line
    assert "fedless-edge policy minimum_cohort=4" in line
    usual = replace(few, secagg_minimum=8)
    assert not any("policy" in each for each in foresee(usual, measured(20), Service()).advice)


def test_abandonment_is_the_binomial_tail_at_least() -> None:
    wanted = replace(WANTED, woken=10, goal=10, minimum=8)
    away = [replace(client, asked=20, reported=14) for client in measured(40)]
    seen = foresee(wanted, away, Service())
    assert seen.too_few <= seen.abandoned
    assert seen.too_few == pytest.approx(0.558, abs=0.01)  # 1 - P(X >= 8), X ~ Binomial(10, 0.7227)
    assert seen.margin == 2


def test_functions_keep_no_keys_and_have_limits() -> None:
    wanted = replace(WANTED, mode=Mode.PAIRWISE, goal=8, woken=8, minimum=6, secagg_minimum=8)
    functions = measured(10, platform="aws-lambda", timeout_ms=60_000)
    assert codes(foresee(wanted, functions, Service())) == [Code.FUNCTION_LIMIT]
    small = [replace(each, memory_mb=300) for each in functions]
    assert codes(foresee(WANTED, small, Service())) == [Code.INSTANCE_MEMORY]
    large = [replace(each, memory_mb=1024) for each in functions]
    assert codes(foresee(WANTED, large, Service())) == []
    short = [replace(each, timeout_ms=2_000) for each in large]
    [refusal] = foresee(WANTED, short, Service()).refusals
    assert refusal.code is Code.FUNCTION_LIMIT
    assert "longer time limit" in refusal.instead


def test_runtime_of_functions_is_the_adapters_own_number() -> None:
    assert feasible.RUNTIME_MB == base.RUNTIME_MB


def test_a_spool_that_does_not_fit_is_refused() -> None:
    seen = foresee(WANTED, measured(20), Service({}, disk_free_bytes=20_000))
    assert codes(seen) == [Code.DISK_FULL]
    assert "at most 5 clients" in seen.refusals[0].instead


def test_pairs_are_in_cohorts_and_a_rule_may_need_several() -> None:
    wanted = replace(WANTED, mode=Mode.PAIRWISE, goal=200, woken=200, minimum=70, secagg_minimum=8, cohorts=2)
    plan = foresee(wanted, measured(250), Service())
    assert codes(plan) == []
    alone = foresee(replace(wanted, goal=100, woken=100, cohorts=1), measured(250), Service())
    assert plan.setup_bytes == alone.setup_bytes, "each client deals with its own cohort only"
    assert codes(foresee(replace(wanted, least_cohorts=3), measured(250), Service())) == [Code.TOO_FEW]


# -- from a task file


def test_task_becomes_what_the_modes_do_with_it() -> None:
    plain = planning.wanted(parse(TASK.format(mode="plain", size=10, more="")), PACKAGE, 100)
    assert (plain.goal, plain.minimum, plain.woken, plain.words, plain.word_bytes) == (10, 8, 13, 1000, 4)
    pairs = planning.wanted(parse(TASK.format(mode="pairwise", size=10, more="")), PACKAGE, 100)
    assert (pairs.goal, pairs.minimum, pairs.woken, pairs.words) == (10, 7, 10, 1002)
    split = planning.wanted(parse(TASK.format(mode="pairwise", size=300, more="")), PACKAGE, 400)
    assert (split.goal, split.minimum, split.woken, split.cohorts) == (300, 105, 300, 3), (
        "half of three times 70"
    )
    helper = planning.wanted(parse(TASK.format(mode="helper", size=10, more="")), PACKAGE, 100)
    assert (helper.goal, helper.minimum, helper.woken) == (10, 8, 13)
    halves = parse(TASK.format(mode="pairwise", size=10, more="[secagg]\nbits = 16"))
    assert planning.wanted(halves, PACKAGE, 100).report_bytes == 2 * 1002
    momentum_free = TASK.format(mode="plain", size=10, more="")
    momentum = parse(
        TASK.format(mode="plain", size=10, more="").replace("[cohort]", 'strategy = "fedadam"\n[cohort]')
    )
    assert planning.wanted(momentum, PACKAGE, 100).vectors == 3
    scaffold = parse(momentum_free.replace("[cohort]", 'strategy = "scaffold"\n[cohort]'))
    assert planning.wanted(scaffold, PACKAGE, 100).words >= 2000, "two vectors in each report"


def test_a_ring_that_cannot_hold_the_sum_is_a_refusal() -> None:
    settings = parse(TASK.format(mode="pairwise", size=100, more="[secagg]\nbits = 16\nclip = 1000.0"))
    seen = planning.judge(settings, PACKAGE, measured(120), Service())
    assert codes(seen) == [Code.RING_OVERFLOW]
    assert "32 bits" in seen.refusals[0].instead


def test_plan_travels_as_json() -> None:
    seen = planning.judge(
        parse(TASK.format(mode="plain", size=30, more="")), PACKAGE, measured(10), Service()
    )
    told = json.loads(planning.plan_to_json(seen))
    assert told["refusals"][0]["code"] == "too_few"
    assert told["woken"] == seen.woken


@pytest.mark.parametrize(
    "wish", [{"speed": 1.0}, {"presence": 1.5}, {"examples_per_s": 0.0}, {"examples": float("nan")}]
)
def test_impossible_assumption_is_refused(wish: dict[str, float]) -> None:
    with pytest.raises(PeerError) as refusal:
        planning.assumed(wish)
    assert refusal.value.code is Code.CONFIG_INVALID


def test_cost_by_hand() -> None:
    pi = DevicePower("test", 2.0, 6.0, 5.0, per_gb_usd=1.0)
    tariff = Tariff(0.2, pi, FunctionPower("test", 10.0, 0.5, 1.0), {})
    seen = foresee(WANTED, measured(20), Service(), tariff=tariff)
    transfer_s = 8 * 8000 / 20e6  # model and report at 20 Mbit/s
    wh = (3.0 * 6.0 + transfer_s * 5.0) / 3600
    assert seen.energy_wh == pytest.approx(13 * 10 * wh)
    assert seen.cost_usd == pytest.approx(13 * 10 * (wh / 1000 * 0.2 + 8000 / 1e9))
    functions = [replace(each, platform="moon", memory_mb=1024) for each in measured(20)]
    assert foresee(WANTED, functions, Service(), tariff=tariff).cost_usd is None
    assert foresee(WANTED, measured(20), Service()).cost_usd is None
