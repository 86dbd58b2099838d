"""The helper's memory: recorded before answered, never forgotten, held by one process."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedless.helper.memory import Memory
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports
from fedless.protocol.secagg.ring import plan


def closing(number: int, clients: range, model: bytes = b"model") -> Closing:
    return Closing(
        context=bytes([number] * 32),
        set_digest=bytes([number + 1] * 32),
        seed_marks=tuple(f"{number}/{client}".encode() for client in clients),
        model_mark=model,
        client_ids=tuple(f"client-{client}" for client in clients),
        encoding=plan(n=10, dimension=1, clip=1.0, max_examples=1),
        stream_seeds=(),
    )


def test_closed_round_survives_a_restart_and_repeats(tmp_path: Path) -> None:
    first = closing(1, range(600))
    with Memory(tmp_path) as memory:
        assert memory.remembered(first.context) is None
        recorded = memory.record(first, b"n" * 32, 77)
    with Memory(tmp_path) as memory:
        known = memory.remembered(first.context)
        assert known is not None
        assert (known.closed, known.at_ms) == (recorded, 77)
        assert memory.record(first, b"other noise" * 3, 99) == Closed(first.set_digest, b"n" * 32)


def test_seed_used_in_an_earlier_round_is_refused(tmp_path: Path) -> None:
    with Memory(tmp_path) as memory:
        memory.record(closing(1, range(600)), b"", 1)
        second = closing(2, range(700, 705), b"next model")
        again = Closing(
            **{
                **vars(second),
                "seed_marks": (*second.seed_marks[:4], b"1/599"),
            }
        )
        refused = memory.record(again, b"", 2)
        assert isinstance(refused, RefusedReports)
        assert refused.reasons == {"client-704": Code.SEED_REPEATED}
        assert memory.remembered(second.context) is None
        assert isinstance(memory.record(second, b"", 3), Closed)


def test_client_summed_twice_over_one_model_is_refused(tmp_path: Path) -> None:
    with Memory(tmp_path) as memory:
        memory.record(closing(1, range(600)), b"", 1)
        refused = memory.record(closing(2, range(598, 603)), b"", 2)
        assert isinstance(refused, RefusedReports)
        assert refused.reasons == {f"client-{i}": Code.MODEL_REPEATED for i in (598, 599)}
        assert isinstance(memory.record(closing(2, range(600, 603)), b"", 3), Closed)
        assert isinstance(memory.record(closing(3, range(600), b"next model"), b"", 4), Closed)


def test_second_helper_on_the_same_state_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fedless.helper.memory import Memory\n"
        "from fedless.protocol.errors import LocalError\n"
        "try: Memory(Path(sys.argv[1]))\n"
        "except LocalError as error: print(error.code.value)"
    )
    with Memory(tmp_path):
        found = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
        )
    assert found.stdout.strip() == Code.STATE_LOCKED.value


def test_damaged_memory_is_refused_and_files_are_private(tmp_path: Path) -> None:
    with Memory(tmp_path / "good"):
        assert stat.S_IMODE((tmp_path / "good" / "helper.db").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "good").stat().st_mode) == 0o700
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "helper.db").write_bytes(b"not a database" * 100)
    with pytest.raises(LocalError) as error:
        Memory(bad)
    assert error.value.code is Code.STATE_CORRUPT
