"""A board joins at a real enrollment port with the claim on its boot partition: once, through power cuts, and anew."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.firstboot import steps
from edge_runtime.firstboot.main import look, set_up
from edge_runtime.firstboot.plan import Trouble
from edge_runtime.firstboot.settings import BoardSettings, Wifi
from edge_runtime.keystore import Keystore
from fedless.protocol.claim import Claim, parse_claim
from fedless.protocol.errors import Code, PeerError
from tests.board import Board, PowerCutError
from tests.edge_fleet import Fleet
from tests.enrollment_port import EnrollmentPort

pytestmark = pytest.mark.real


@pytest.fixture
def port(fleet: Fleet) -> Iterator[EnrollmentPort]:
    port = EnrollmentPort(fleet)
    port.start()
    yield port
    port.stop()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board(tmp_path)
    board.network()
    return board


def never(seconds: float) -> None:
    pytest.fail(f"it waited {seconds} s")


def test_a_board_joins_by_its_claim_and_erases_it(board: Board, port: EnrollmentPort) -> None:
    path = board.claim(port.claim)
    assert set_up(board.machine, never)
    assert not path.exists()
    assert Keystore(board.machine.state).load().client_id == "device-1"
    assert "Joined: device-1 in fleet testing." in board.status
    assert port.claim not in board.status
    assert ["systemctl", "start", "--no-block", "fedless-edge.service"] in board.commands
    board.commands.clear()
    assert set_up(board.machine, never), "the next start has nothing to do"


def test_power_cut_between_joining_and_erasing_spends_the_claim_once(
    board: Board, port: EnrollmentPort
) -> None:
    claim = port.claim
    board.claim(claim)
    assert set_up(board.machine, never)
    key = (board.machine.state / "identity/key.pem").read_bytes()
    path = board.claim(claim)  # as if it had not been erased
    assert set_up(board.machine, never)
    assert not path.exists()
    assert (board.machine.state / "identity/key.pem").read_bytes() == key
    assert len(port.issued) == 1


def test_power_cut_at_every_command_of_first_boot_leaves_a_board_that_joins(
    board: Board, port: EnrollmentPort
) -> None:
    """It is cut at its first command, starts again, is cut at its second, and so on until none is left."""
    path = board.claim(port.claim)
    board.card(has_mb=1400, could_mb=30_000)
    board.put("/usr/sbin/sshd", "")
    wifi = BoardSettings("greenhouse-7", Wifi("the network", "correct horse", "DE"))
    board.put("/boot/firmware/fedless.toml", wifi.text())
    cuts = 0
    while True:
        try:
            assert set_up(board.cut_at(cuts), never)
            break
        except PowerCutError:
            cuts += 1
    assert cuts >= 5
    assert not path.exists()
    assert len(port.issued) == 1
    assert board.text("/etc/hostname") == "greenhouse-7\n"
    assert "Joined: device-1 in fleet testing." in board.status
    for wanted in ("ssh-keygen", "sfdisk", "resize2fs"):
        assert board.called(wanted), wanted
    assert ["systemctl", "enable", "wpa_supplicant@wlan0.service"] in board.commands
    assert board.text("/etc/wpa_supplicant/wpa_supplicant-wlan0.conf").count("network={") == 1


def test_a_new_claim_makes_a_board_join_anew(board: Board, port: EnrollmentPort) -> None:
    board.claim(port.claim)
    assert set_up(board.machine, never)
    other = EnrollmentPort(Fleet("second"))
    other.start()
    try:
        path = board.claim(other.claim)
        assert set_up(board.machine, never)
    finally:
        other.stop()
    assert Keystore(board.machine.state).load().fleet == "second"
    assert not path.exists()


@pytest.mark.parametrize(
    ("code", "trouble", "sentence"),
    [
        (Code.CLAIM_EXPIRED, Trouble.CLAIM_EXPIRED, "The claim has expired."),
        (Code.CLAIM_USED, Trouble.CLAIM_SPENT, "used by another device"),
    ],
)
def test_a_refused_claim_is_told_and_kept(
    board: Board, port: EnrollmentPort, code: Code, trouble: Trouble, sentence: str
) -> None:
    def refuse(_: object) -> object:
        raise PeerError(code)

    port.forge = refuse
    path = board.claim(port.claim)
    assert not set_up(board.machine, lambda _: None, attempts=1)
    assert sentence in board.status
    assert path.exists()
    assert steps.join(board.machine).trouble is trouble


def test_an_aggregator_with_another_authority_is_told_as_such(board: Board, port: EnrollmentPort) -> None:
    """The aggregator's certificate changed, or somebody stands in between."""
    impostor = EnrollmentPort(Fleet("testing"))
    impostor.start()
    try:
        board.claim(_readdressed(port.claim, impostor.port))
        assert not set_up(board.machine, lambda _: None, attempts=1)
    finally:
        impostor.stop()
    assert "not the one that this board was given" in board.status
    assert not Keystore(board.machine.state).enrolled


def _readdressed(claim: str, port: int) -> str:
    given = parse_claim(claim)
    return Claim(f"127.0.0.1:{port}", given.authority, given.secret).text


def test_a_board_that_has_joined_tells_what_its_agent_says(board: Board, port: EnrollmentPort) -> None:
    board.claim(port.claim)
    assert set_up(board.machine, never)
    lock = board.machine.state / "lock"
    lock.touch()
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # an agent runs
        (board.machine.state / "agent.json").write_text(
            json.dumps({"state": "disconnected", "reason": "ConnectionRefusedError: refused", "at_ms": 1})
        )
        assert look(board.machine) is Trouble.BROKER_AWAY
        assert "The MQTT broker does not answer." in board.status
        (board.machine.state / "agent.json").write_text(
            json.dumps({"state": "connected", "reason": "127.0.0.1:8883", "at_ms": 2})
        )
        assert look(board.machine) is None
        assert "All is well" in board.status
