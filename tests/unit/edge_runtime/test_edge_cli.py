"""`fedless-edge`: one clear line and exit status 1 for every mistake; status, policy, data check and doctor."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import cli, doctor
from edge_runtime.journal import Journal
from edge_runtime.keystore import Keystore
from fedless.protocol.errors import Code
from fedless.protocol.messages import Mode
from tests.edge_fleet import FUNCTION, FakeAggregator, Fleet


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def state(fleet: Fleet, tmp_path: Path) -> Path:
    return fleet.device(tmp_path / "state", "device-1", 1)


def edge(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_state_that_is_not_enrolled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "status"):
        assert edge(command, "--state", tmp_path) == 1
        said = capsys.readouterr().err
        assert said.startswith("fedless-edge: The state directory is not set up.")
        assert "fedless-edge enroll" in said
        assert said.count("\n") == 1


def test_run_refuses_a_configuration_with_mistakes(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "edge.toml").write_text("[agent]\nqueue = 0\nkeepalive_s = 1\n")
    assert edge("run", "--state", state) == 1
    said = capsys.readouterr().err
    assert "agent.queue" in said
    assert "agent.keepalive_s" in said


def test_claim_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments are visible to every user of the machine."""
    with pytest.raises(SystemExit):
        edge("enroll", "fedless1.host:1.aaaa.bbbb.cccc")
    with pytest.raises(SystemExit):
        edge("enroll", "--help")
    assert "--claim FILE" in capsys.readouterr().out


def test_claim_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge("enroll", "--state", tmp_path / "state", "--claim", tmp_path / "none") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_status_as_json_and_lines(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal.open(state / "journal.db")
    journal.refuse(Code.TICKET_FORGED, "somebody tries", 0, 5)
    journal.close()
    assert edge("status", "--json", "--state", state) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["client_id"] == "device-1"
    assert found["counters"] == {"ticket_forged": 1}
    assert found["agent"]["running"] is False
    assert edge("status", "--state", state) == 0
    shown = capsys.readouterr().out
    assert "device-1 of fleet testing" in shown
    assert "ticket_forged 1" in shown
    assert "somebody tries" in shown


def test_status_of_a_corrupt_journal_says_what_to_do(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "journal.db").write_bytes(b"no database" * 1000)
    assert edge("status", "--state", state) == 1
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "journal.db-wal" in said


def test_policy_is_shown_and_changed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge("policy", "--state", state) == 0
    assert 'modes = ["plain"]' in capsys.readouterr().out
    assert edge("policy", "modes=pairwise,helper", "minimum_cohort=12", "--state", state) == 0
    policy = Keystore(state).load().policy
    assert policy.modes == {Mode.PAIRWISE, Mode.HELPER}
    assert policy.minimum_cohort == 12
    for wrong in ("modes=loud", "colour=red", "minimum_cohort=few", "count_functions=maybe"):
        assert edge("policy", wrong, "--state", state) == 1
    assert Keystore(state).load().policy == policy


def test_data_check(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge("data", "check", FUNCTION, "--state", state) == 0
    assert capsys.readouterr().out == "default: 40 examples fit mnist-mlp version 1.\n"
    np.savez(state / "examples.npz", x=np.zeros((4, 27, 27, 1), np.float32), y=np.zeros(4, np.int32))
    assert edge("data", "check", FUNCTION / "function.toml", "--state", state) == 1
    assert "27" in capsys.readouterr().err
    assert edge("data", "check", FUNCTION, "--source", "other", "--state", state) == 1
    assert edge("data", "check", state / "nothing", "--state", state) == 1


def test_doctor_finds_a_healthy_device(fleet: Fleet, tmp_path: Path) -> None:
    aggregator = FakeAggregator(fleet)
    state = fleet.device(tmp_path / "state", "device-1", aggregator.start())
    try:
        found = {finding.what: finding for finding in doctor.examine(state)}
    finally:
        aggregator.stop()
    troubles = {what for what, finding in found.items() if not finding.well}
    assert troubles == {"broker", "agent"}, "there is neither in this test"
    assert all(finding.fix for finding in found.values() if not finding.well)
    assert aggregator.calls == ["report_status"]


def test_doctor_compares_the_clock(fleet: Fleet, tmp_path: Path) -> None:
    aggregator = FakeAggregator(fleet)
    aggregator.clock_ahead_ms = -366 * 86_400_000
    state = fleet.device(tmp_path / "state", "device-1", aggregator.start())
    try:
        (clock,) = [f for f in doctor.examine(state) if f.what == "clock" and not f.well]
    finally:
        aggregator.stop()
    assert "366 days ahead" in clock.found


def damage_data(state: Path) -> None:
    (state / "examples.npz").unlink()


def damage_config(state: Path) -> None:
    (state / "edge.toml").write_text("colour = 1")


def damage_journal(state: Path) -> None:
    (state / "journal.db").write_bytes(b"x" * 9000)


def damage_key(state: Path) -> None:
    (state / "identity" / "key.pem").chmod(0o644)


def damage_identity(state: Path) -> None:
    shutil.rmtree(state / "identity")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_data, "data"),
        (damage_config, "config"),
        (damage_journal, "journal"),
        (damage_key, "identity"),
        (damage_identity, "identity"),
    ],
)
def test_doctor_names_the_trouble(
    state: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], what: str
) -> None:
    damage(state)
    assert edge("doctor", "--state", state) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(f"BAD  {what}")], "\n".join(lines)


def test_help_of_the_command_is_fast() -> None:
    """What every subcommand imports before it knows what it has to do."""
    import subprocess

    code = "import sys, edge_runtime.cli; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "grpc", "cryptography", "sqlite3", "ssl"} & set(run.stdout.split()) == set()


def test_logs_are_those_of_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, since the command becomes journalctl."""
    import subprocess

    program = tmp_path / "journalctl"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command = [sys.executable, "-m", "edge_runtime.cli", "logs", "-f", "-n", "5"]
    assert subprocess.run(command, check=False).returncode == 0
    assert capfd.readouterr().out == "--unit fedless-edge --output cat --lines 5 --follow\n"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert subprocess.run(command, check=False).returncode == 1
    assert "There is no journalctl here" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["functions", "rollback", "absent"], ["invoke", "absent", "{"]])
def test_functions_that_are_not_there(
    state: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert edge(*arguments, "--state", state) == 1
    assert capsys.readouterr().err.startswith("fedless-edge: ")


def test_a_bundle_that_is_none_is_not_installed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "x.bundle").write_bytes(b"no bundle")
    for name in ("x.bundle", "absent.bundle"):
        assert edge("functions", "install", state / name, "--state", state) == 1
        assert "not a fedless bundle" in capsys.readouterr().err
