"""What the device remembers of its functions: two versions, the highest one ever seen, calls and their statistics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_runtime.functions import CALLS_KEPT, Call, Functions, Installed, statistics
from edge_runtime.lifecycle import Phase
from edge_runtime.sandbox import Space
from fedless.protocol.errors import Code, LocalError

SPACE = Space(("/data",), 8, network=True)


@pytest.fixture
def functions(tmp_path: Path) -> Iterator[Functions]:
    functions = Functions(tmp_path)
    yield functions
    functions.close()


def version(number: int, name: str = "adder", space: Space | None = SPACE) -> Installed:
    return Installed(
        f"{name}{number}", name, number, "main:handle",
        proved=False, failures=0, given_up=False, space=space, model="",
    )  # fmt: skip


def call(number: int, **changes: object) -> Call:
    fields: dict[str, object] = {
        "at_ms": number, "name": "adder", "version": 1, "kind": "invoke", "start": "warm", "caller": "0",
        "outcome": "done", "total_ms": float(number),
    }  # fmt: skip
    return Call(**fields | changes)  # type: ignore[arg-type]


def test_what_is_installed_is_found_again(functions: Functions, tmp_path: Path) -> None:
    assert functions.install(version(1), 1) == []
    functions.install(version(1, "other", None), 1)
    again = Functions(tmp_path)
    assert again.find("adder1") == version(1)
    assert again.current("other") == version(1, "other", None)
    assert again.find("absent") is None
    again.close()


def test_the_newest_two_stay_and_the_highest_is_remembered(functions: Functions) -> None:
    gone = [functions.install(version(number), number) for number in (1, 2, 5)]
    assert gone == [[], [], ["adder1"]]
    assert [item.version for item in functions.versions("adder")] == [5, 2]
    assert functions.newest_seen("adder") == 5
    assert functions.newest_seen("absent") == 0


def test_a_version_that_was_given_up_makes_room_for_the_one_that_works(functions: Functions) -> None:
    for number in (1, 2):
        functions.install(version(number), number)
    assert functions.roll_back("adder").version == 1
    assert functions.install(version(3), 3) == ["adder2"]
    assert [item.version for item in functions.versions("adder")] == [3, 1]


def test_how_a_version_does_survives_a_restart(functions: Functions, tmp_path: Path) -> None:
    functions.install(version(1), 1)
    automaton = functions.versions("adder")[0].as_version()
    automaton.failures, automaton.phase = 2, Phase.FAILED
    functions.judge(automaton)
    again = Functions(tmp_path)
    found = again.versions("adder")[0]
    again.close()
    assert (found.failures, found.given_up, found.as_version().phase) == (2, True, Phase.FAILED)


def test_a_changed_space_or_model_is_written_and_the_trials_are_kept(functions: Functions) -> None:
    from dataclasses import replace

    functions.install(version(1), 1)
    automaton = functions.versions("adder")[0].as_version()
    automaton.proved = True
    functions.judge(automaton)
    functions.install(replace(version(1, space=None), model="ff"), 2)
    found = functions.find("adder1")
    assert found is not None
    assert (found.space, found.model, found.proved) == (None, "ff", True)


def test_calls_are_bounded(functions: Functions) -> None:
    for number in range(CALLS_KEPT + 5):
        functions.record(call(number))
    calls = functions.calls()
    assert len(calls) == CALLS_KEPT
    assert calls[0].at_ms == CALLS_KEPT + 4
    assert len(functions.calls(most=3)) == 3


def test_statistics_by_function_and_start() -> None:
    calls = [call(number) for number in range(1, 101)]
    calls += [call(1000, start="cold", outcome="instance_failed")]
    calls += [
        call(5000, start="cold", outcome="queue_full", version=0),
        call(5, name="digits", outcome="reported"),
    ]
    found = statistics(calls)
    adder = found["adder"]
    assert (adder["calls"], adder["failed"], adder["warm"], adder["cold"]) == (102, 2, 100, 1)
    assert (adder["warm_total_ms_p50"], adder["warm_total_ms_p95"]) == (50.0, 95.0)
    assert adder["cold_total_ms_p95"] == 1000.0, "who got no instance is not among them"
    assert found["digits"]["failed"] == 0
    assert "cold_total_ms_p50" not in found["digits"]


def test_bytes_of_other_days_are_forgotten(functions: Functions) -> None:
    functions.add_bytes("2026-11-22", 5)
    functions.add_bytes("2026-11-23", 7)
    functions.add_bytes("2026-11-23", 1)
    assert functions.used_bytes("2026-11-23") == 8
    assert functions.used_bytes("2026-11-22") == 0


def test_a_damaged_file_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "functions.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(LocalError) as caught:
        Functions(tmp_path)
    assert caught.value.code is Code.STATE_CORRUPT
    assert "functions.db" in caught.value.fix


def test_many_open_a_new_database_at_once(tmp_path: Path) -> None:
    """Agent, participant and command line may all be the first: none takes the others' work for damage."""
    script = "import sys; from pathlib import Path; from edge_runtime.functions import Functions; sys.stdin.read(1);"
    script += " Functions(Path(sys.argv[1])).close()"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 8


def test_threads_may_share_one_object(tmp_path: Path) -> None:
    functions = Functions(tmp_path)
    calls = [Call(number, "f", 1, "infer", "cold", "0", "done") for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(functions.record, calls))
        list(pool.map(lambda _: functions.add_bytes("2026-01-01", 1), range(200)))
    assert len(functions.calls()) == 200
    assert functions.used_bytes("2026-01-01") == 200
    functions.close()
