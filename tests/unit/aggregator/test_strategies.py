"""Server rules against hand-computed results, and the commit that works them block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aggregator import commit
from aggregator.blobs import Blobs
from aggregator.store.records import ModelRecord
from aggregator.strategies import STRATEGIES, hidden, make
from aggregator.strategies.base import Strategy
from aggregator.strategies.robust import Robust
from aggregator.uploads import BLOCK, FloatSum
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import ClientRule

NEEDED: dict[str, dict[str, float]] = {
    "krum": {"byzantine": 1},
    "apodotiko": {"ratio": 0.5},
    "norm-clipping": {"norm": 1.0},
}


def steps(strategy: Strategy, means: Sequence[float]) -> list[list[float]]:
    """Weight and state of one coordinate, from 0, after each of these mean updates."""
    model = np.zeros(1, np.float32)
    state: Sequence[np.ndarray] = [np.full(1, first, np.float32) for first in strategy.state.values()]
    told = []
    for mean in means:
        model, state = strategy.step(model, np.array([mean]), state)
        assert [array.dtype for array in (model, *state)] == [np.float32] * (1 + len(state))
        told.append([float(model[0]), *(float(array[0]) for array in state)])
    return told


def committed(strategy: Strategy, reports: np.ndarray, tmp_path: Path) -> np.ndarray:
    """The mean update of these single reports, by the same way as in a round."""
    files = [tmp_path / f"client-{number}.part" for number in range(len(reports))]
    for file, report in zip(files, reports, strict=True):
        report.astype("<f4").tofile(file)
    spooled = commit.SingleReports(files, reports.shape[1])
    return np.concatenate(list(commit.mean_blocks(spooled, strategy)))


# -- rules that need the mean only


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_next_model_is_the_weighted_mean_of_the_clients_weights(name: str) -> None:
    """McMahan et al. 2017, algorithm 1: w = sum n_k/n w_k, with n = 10, 30 and weights 1 and 2."""
    start = np.array([0.5, 0.0], np.float32)
    first, second = np.array([1.0, 4.0]), np.array([2.0, 8.0])
    sum_ = FloatSum(2)
    sum_.total += 10 * (first - start) + 30 * (second - start)
    sum_.weight = 40
    strategy = make(name, {})
    (mean,) = commit.mean_blocks(sum_, strategy)
    model, state = strategy.step(start, mean, [])
    assert (model.tolist(), str(model.dtype), list(state)) == ([1.75, 7.0], "float32", [])


def test_fedavgm_is_the_papers_momentum() -> None:
    """Hsu et al. 2019: v = 1, 0.5 + 2, 1.25 - 1; w is the running sum of v, times the learning rate."""
    told = steps(make("fedavgm", {"momentum": 0.5, "learning_rate": 2.0}), [1.0, 2.0, -1.0])
    assert told == [[2.0, 1.0], [7.0, 2.5], [7.5, 0.25]]


def test_fedavgm_without_momentum_is_fedavg() -> None:
    assert [w for w, _ in steps(make("fedavgm", {"momentum": 0.0}), [1.0, 2.0])] == [1.0, 3.0]


def test_fedadagrad_by_hand() -> None:
    """Reddi et al. 2021, algorithm 2, tau 1/4: v = 1/16 + 9 / 16 = 0.625, then + 1 = 1.625."""
    options = {"tau": 0.25, "learning_rate": 1.0}
    told = steps(make("fedadagrad", options), [0.75, -1.0])
    first = 0.75 / (0.625**0.5 + 0.25)
    assert told[0] == pytest.approx([first, 0.75, 0.625])
    assert told[1] == pytest.approx([first - 1.0 / (1.625**0.5 + 0.25), -1.0, 1.625])


def test_fedadam_by_hand() -> None:
    """Algorithm 2, all halves, tau 1: m = 1, 1/2; v = 1/2 + 2 = 2.5, 1.25 + 0; no bias correction."""
    options = {"tau": 1.0, "learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5}
    told = steps(make("fedadam", options), [2.0, 0.0])
    first = 1.0 / (2.5**0.5 + 1.0)
    assert told[0] == pytest.approx([first, 1.0, 2.5])
    assert told[1] == pytest.approx([first + 0.5 / (1.25**0.5 + 1.0), 0.5, 1.25])


def test_fedyogi_by_hand() -> None:
    """Algorithm 2, halves, tau 1: v = 1 + 4/2 as 4 is above it; then 3 - 1/2, where FedAdam's would fall to 2."""
    options = {"tau": 1.0, "learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5}
    told = steps(make("fedyogi", options), [2.0, 1.0])
    first = 1.0 / (3.0**0.5 + 1.0)
    assert told[0] == pytest.approx([first, 1.0, 3.0])
    assert told[1] == pytest.approx([first + 1.0 / (2.5**0.5 + 1.0), 1.0, 2.5])


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_defaults_are_the_papers(name: str) -> None:
    """The paper's experiments: beta1 0.9 (0 for FedAdagrad), beta2 0.99, tau 0.001; v begins with tau^2."""
    strategy = make(name, {})
    assert strategy.state == {"momentum": 0.0, "second_moment": 1e-6}
    told = {
        field: getattr(strategy, field) for field in ("beta1", "beta2", "tau") if hasattr(strategy, field)
    }
    rest = {"beta1": 0.0} if name == "fedadagrad" else {"beta1": 0.9, "beta2": 0.99}
    assert told == {"tau": 1e-3, **rest}


# -- rules that see single reports


def test_median_coordinate_by_coordinate(tmp_path: Path) -> None:
    reports = np.array([[1.0, 8.0], [2.0, 7.0], [1e6, -1e6]])
    assert committed(make("median", {}), reports, tmp_path).tolist() == [2.0, 7.0]
    even = np.array([[1.0], [2.0], [4.0], [9.0]])
    assert committed(make("median", {}), even, tmp_path).tolist() == [3.0]


def test_trimmed_mean_cuts_on_both_sides(tmp_path: Path) -> None:
    reports = np.array([[-1e6, 5.0], [1.0, 1e6], [2.0, 3.0], [6.0, 4.0], [1e6, -1e6]])
    assert committed(make("trimmed-mean", {"trim": 0.2}), reports, tmp_path).tolist() == [3.0, 4.0]
    assert committed(make("trimmed-mean", {"trim": 0.21}), reports, tmp_path).tolist() == [2.0, 4.0]
    three = np.array([[1.0], [5.0], [1e6]])
    assert committed(make("trimmed-mean", {"trim": 0.49}), three, tmp_path).tolist() == [5.0]


def test_norm_clipping_scales_long_updates_only(tmp_path: Path) -> None:
    """(3, 4) has norm 5 and becomes (0.6, 0.8); (0, 0.5) stays, (0, 0) too."""
    reports = np.array([[3.0, 4.0], [0.0, 0.5], [0.0, 0.0]])
    mean = committed(make("norm-clipping", {"norm": 1.0}), reports, tmp_path)
    assert mean == pytest.approx([0.2, 1.3 / 3])


def test_krum_by_hand(tmp_path: Path) -> None:
    """f = 1 of n = 5: 2 neighbours count. Scores of 0, 1, 3, 4.5, 100: 1 + 9, 1 + 4, 2.25 + 4, 2.25 + 12.25, much."""
    reports = np.array([[0.0], [1.0], [3.0], [4.5], [100.0]])
    krum = make("krum", {"byzantine": 1})
    assert committed(krum, reports, tmp_path).tolist() == [1.0]
    assert committed(make("krum", {"byzantine": 1, "keep": 2}), reports, tmp_path).tolist() == [2.0]
    assert (krum.least_reports, make("krum", {"byzantine": 1, "keep": 4}).least_reports) == (5, 7)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum"])
def test_a_lying_third_does_not_move_the_model_far(name: str, tmp_path: Path) -> None:
    """FedAvg would be pulled to a third of what the liars say."""
    generator = np.random.default_rng(3)
    reports = generator.normal(1.0, 0.1, (10, 3000))
    reports[[0, 4, 9]] = 1e6
    options: dict[str, dict[str, float]] = {
        "median": {},
        "trimmed-mean": {"trim": 0.3},
        "krum": {"byzantine": 3, "keep": 5},
    }
    mean = committed(make(name, options[name]), reports, tmp_path)
    assert np.abs(mean - 1.0).max() < 0.4


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "norm-clipping"])
def test_blocks_are_one_array_cut_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = np.random.default_rng(5).normal(size=(7, 2500)).astype(np.float32)
    strategy = make(name, NEEDED.get(name, {}))
    assert isinstance(strategy, Robust)
    whole = strategy.mean(reports, strategy.weights(iter([reports]), 7))
    monkeypatch.setattr(commit, "BLOCK", 7 * 1024)
    assert committed(strategy, reports, tmp_path) == pytest.approx(whole, abs=1e-12)


def test_memory_of_single_reports_is_a_block(tmp_path: Path) -> None:
    """64 clients with 4 MB each, 256 MB in all: a block has as many numbers as one block of a sum."""
    file = tmp_path / "client.part"
    np.zeros(1_000_000, "<f4").tofile(file)
    sizes = [block.size for block in commit.SingleReports([file] * 64, 1_000_000).blocks()]
    assert (max(sizes), sum(sizes)) == (BLOCK, 64_000_000)


# -- options and complaints


def test_fedprox_needs_its_mu_and_fedavg_must_not_have_one() -> None:
    assert make("fedavg", {}).complaints(ClientRule()) == []
    assert make("fedprox", {}).complaints(ClientRule(proximal_mu=0.1)) == []
    assert "found 0" in make("fedprox", {}).complaints(ClientRule())[0]
    assert "found 0.1" in make("fedavg", {}).complaints(ClientRule(proximal_mu=0.1))[0]


def test_an_option_that_the_strategy_does_not_use_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"strategy_options\.tau: fedavgm does not use it; it has learning_rate, mom"
    ):
        make("fedavgm", {"tau": 0.1})
    with pytest.raises(ValueError, match="momentum: fedavg does not use it; it has no options"):
        make("fedavg", {"momentum": 0.1})
    with pytest.raises(ValueError, match="byzantine: missing; krum needs it"):
        make("krum", {})


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_masks_hide_is_said(name: str) -> None:
    strategy = make(name, NEEDED.get(name, {}))
    assert bool(hidden(strategy)) == (isinstance(strategy, Robust) or strategy.late is not None)


# -- the commit


async def test_a_model_of_several_blocks_is_made_block_by_block(tmp_path: Path) -> None:
    size = 2 * BLOCK + 7
    blobs = Blobs(tmp_path)
    old = np.arange(size, dtype=np.float32)
    digest, _ = await blobs.put_bytes(old.tobytes())
    sum_ = FloatSum(size)
    sum_.total[:] = 4.0
    sum_.weight = 2
    strategy, first = make("fedavgm", {"momentum": 0.5}), ModelRecord(0, digest, 0)
    second = commit.next_model(blobs, first, commit.mean_blocks(sum_, strategy), strategy, 7)
    assert (second.version, second.round_id, list(second.state)) == (1, 7, ["momentum"])
    assert np.array_equal(np.fromfile(blobs.path(second.digest), "<f4"), old + 2)
    again = commit.next_model(blobs, first, commit.mean_blocks(sum_, strategy), strategy, 7)
    assert again == second, "the same again after a crash"
    third = commit.next_model(blobs, second, commit.mean_blocks(sum_, strategy), strategy, 8)
    assert np.array_equal(np.fromfile(blobs.path(third.digest), "<f4"), old + 2 + 3)
    assert np.array_equal(np.fromfile(blobs.path(third.state["momentum"]), "<f4"), np.full(size, 3.0))


async def test_momentum_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest, _ = await blobs.put_bytes(bytes(8))
    for state, code in (({}, Code.STATE_CORRUPT), ({"momentum": bytes(32)}, Code.UNKNOWN_BLOB)):
        with pytest.raises((LocalError, PeerError)) as failure:
            commit.next_model(blobs, ModelRecord(1, digest, 5, state), [np.zeros(2)], make("fedavgm", {}), 6)
        assert failure.value.code is code


async def test_initial_weights_are_checked(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    good, _ = await blobs.put_bytes(np.zeros(4, "<f4").tobytes())
    bad, _ = await blobs.put_bytes(np.full(4, np.nan, "<f4").tobytes())
    commit.check_model(blobs, good, 4)
    for digest, parameters, code in ((good, 5, Code.WRONG_LENGTH), (bad, 4, Code.NOT_FINITE)):
        with pytest.raises(PeerError) as refusal:
            commit.check_model(blobs, digest, parameters)
        assert refusal.value.code is code
