"""What `fedless privacy` shows: every ledger, over all runs, with its epsilon."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from aggregator import ledger
from aggregator.ledger import Statement
from aggregator.store import privacy as store
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, PeerError


async def test_statements_add_up_each_clients_rounds_by_what_they_protect(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'fedless.db'}")
    try:
        for round_id, clients, unit, spend in (
            (1, ["a", "b"], "client", 0.25),
            (2, ["a"], "client", 0.25),
            (3, ["a"], "example", 3.0),
            (2, ["a"], "client", 9.0),  # charged already
        ):
            charge = partial(
                store.charge,
                round_id=round_id,
                run_id="run",
                clients=clients,
                unit=unit,
                spend=spend,
                at_ms=1,
            )
            await database.run(charge)
        found = await ledger.statements(database, 1e-5)
        assert [(each.client_id, each.unit, each.rounds, each.spend) for each in found] == [
            ("a", "client", 2, 0.5),
            ("a", "example", 1, 3.0),
            ("b", "client", 1, 0.25),
        ]
        assert found[0] == Statement("a", "client", 2, 0.5, ledger.epsilon_of(0.5, 1e-5))
        with pytest.raises(PeerError) as refusal:
            await ledger.statements(database, 1.0)
        assert refusal.value.code is Code.OUT_OF_RANGE
    finally:
        database.close()
