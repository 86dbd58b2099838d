"""A run's figures as `run` would have written them: four rounds of three clients, one lost in round 3."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def rounds() -> list[dict[str, Any]]:
    return [_round(number) for number in (1, 2, 3, 4)]


def _round(number: int) -> dict[str, Any]:
    clients = {f"edge-{index:03d}": _client(number, index) for index in (1, 2, 3)}
    lost = number == 3
    if lost:
        clients["edge-002"] = {
            **_client(number, 2),
            "outcome": "instance_failed",
            "timings_ms": {},
            "bytes_up": 0,
        }
    return {
        "number": number,
        "round_id": 100 + number,
        "state": "committed",
        "reason": "",
        "mode": "plain",
        "selected": 3,
        "checked_in": 3,
        "reported": 2 if lost else 3,
        "dropouts": int(lost),
        "examples": 300,
        "opened_at_ms": 1_000_000 * number,
        "ended_at_ms": 1_000_000 * number + 1500 + number,
        "seconds": 1.5 + number / 1000,
        "metrics": {"test_accuracy": 0.5 + number / 10, "test_loss": 1.0 / number},
        "phases_ms": {"collecting": 1200.0, "committing": 300.0},
        "losses": {"instance_failed": 1} if lost else {},
        "bytes_down": 3000,
        "bytes_up": 1200,
        "clients": clients,
    }


def _client(number: int, index: int) -> dict[str, Any]:
    return {
        "outcome": "reported",
        "start": "cold" if number == 1 else "warm",
        "timings_ms": {"first_step": 400.0 + 10 * number + index},
        "bytes_down": 1000,
        "bytes_up": 400,
        "peak_rss_mb": 100.0,
        "participant_peak_rss_mb": 50.0,
        "agent_rss_mb": 23.0,
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "name": "small",
        "run_id": "small-1",
        "started_at": "2026-11-23 15:00 UTC",
        "clients": 3,
        "parameters": 100,
        "masked": False,
        "test_accuracy": 0.9,
        "rounds": 4,
        "round_seconds_median": 1.5,
        "seeds": [1],
        "machine": {"cores": 2},
    }
