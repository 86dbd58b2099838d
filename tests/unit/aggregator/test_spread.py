"""How an evaluation differs by client, by hand; nothing of it where single figures are hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aggregator import commit
from aggregator.members import Member, Phase, Stage, Terms
from aggregator.round import Round
from fedless.protocol.messages import Encoding, Kind, Mode, ReportHeader

TERMS = Terms(7, "r", 1, Kind.EVALUATE, 1, 20, 1, 0, 60_000, 0, 100)
CORRECT = range(20)


def evaluated(terms: Terms = TERMS) -> Round:
    """Twenty clients with 20 examples each; client n had n right and a loss of n in all."""
    members = [
        Member(
            f"c{n}", b"n" * 16, Stage.REPORTED,
            header=ReportHeader(7, Encoding.FLOAT32, 0, b"d" * 32, 20, {"correct": float(n), "loss": float(n)}),
        )
        for n in CORRECT
    ]  # fmt: skip
    return Round(terms, Phase.COMMITTING, [*members, Member("late", b"n" * 16)])


def test_percentiles_and_the_worst_tenth_of_the_clients() -> None:
    found = commit.spread(evaluated())
    values = [n / 20 for n in CORRECT]
    for name in ("accuracy", "loss"):
        for percent in (10, 50, 90):
            assert found[f"device_{name}_p{percent}"] == pytest.approx(np.percentile(values, percent))
    assert found["device_accuracy_worst_decile"] == pytest.approx((0.0 + 0.05) / 2)
    assert found["device_loss_worst_decile"] == pytest.approx((0.95 + 0.90) / 2)


def test_masked_rounds_tell_no_single_figure() -> None:
    assert commit.spread(evaluated(replace(TERMS, mode=Mode.PAIRWISE))) == {}


def test_nobody_has_no_distribution() -> None:
    assert commit.spread(Round(TERMS, Phase.COMMITTING)) == {}
