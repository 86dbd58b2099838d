"""Enrolling at the aggregator's real enrollment port, a fake authority behind it: claims, attacks, power cuts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.enroll import clock_complaint, enroll
from edge_runtime.keystore import Keystore
from fedless.protocol import identity
from fedless.protocol.claim import Claim, authority_digest
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode, PolicyMessage
from tests.edge_fleet import Authority, Fleet
from tests.enrollment_port import SECRET, EnrollmentPort

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
from edge_runtime.enroll import enroll

def observe(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

enroll(Path(sys.argv[1]), sys.stdin.read(), observe=observe)
"""


@pytest.fixture
def port(fleet: Fleet) -> Iterator[EnrollmentPort]:
    port = EnrollmentPort(fleet)
    port.start()
    yield port
    port.stop()


def test_claim_becomes_an_identity(port: EnrollmentPort, tmp_path: Path) -> None:
    joined = enroll(tmp_path / "state", port.claim)
    assert (joined.fleet, joined.client_id) == ("testing", "device-1")
    assert abs(joined.clock_ahead_ms) < 5000
    found = Keystore(tmp_path / "state").load()
    assert found.client_id == "device-1"
    assert found.policy.modes == {Mode.PLAIN}
    assert Keystore(tmp_path / "state").open_files() == []
    with pytest.raises(LocalError) as caught:
        enroll(tmp_path / "state", port.claim)
    assert caught.value.code is Code.STATE_EXISTS


@pytest.mark.parametrize("step", ["key_made", "authority_checked", "answered", "stored"])
def test_power_cut_in_the_middle_costs_nothing(port: EnrollmentPort, tmp_path: Path, step: str) -> None:
    state = tmp_path / "state"
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(state), step],
        input=port.claim.encode(),
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    key = (state / "identity" / "key.pem").read_bytes()
    if step == "stored":
        assert Keystore(state).load().client_id == "device-1"
    else:
        assert not Keystore(state).enrolled
        enroll(state, port.claim)
    assert (state / "identity" / "key.pem").read_bytes() == key
    assert len(port.issued) == 1, "the same key got the same certificate"


def test_claim_used_with_another_key_is_refused(port: EnrollmentPort, tmp_path: Path) -> None:
    enroll(tmp_path / "one", port.claim)
    with pytest.raises(PeerError) as caught:
        enroll(tmp_path / "two", port.claim)
    assert caught.value.code is Code.CLAIM_USED
    assert not Keystore(tmp_path / "two").enrolled


def test_mistyped_claim_is_refused_without_a_call(port: EnrollmentPort, tmp_path: Path) -> None:
    with pytest.raises(PeerError) as caught:
        enroll(tmp_path / "state", port.claim.replace(SECRET[:4], "aaaa"))
    assert caught.value.code is Code.CLAIM_MALFORMED
    assert SECRET[4:] not in str(caught.value)
    assert not (tmp_path / "state").exists()


def test_foreign_authority_at_the_address_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Somebody in between serves an authority of his own."""
    port = EnrollmentPort(fleet)
    port.served_pem = Authority(fleet.name).pem
    port.start()
    try:
        with pytest.raises(PeerError) as caught:
            enroll(tmp_path / "state", port.claim)
    finally:
        port.stop()
    assert caught.value.code is Code.CLAIM_FOREIGN
    assert port.issued == {}, "the secret was not sent"


@pytest.mark.parametrize("forgery", ["another_key", "another_authority", "another_name", "no_keys"])
def test_answer_that_does_not_fit_is_refused(port: EnrollmentPort, tmp_path: Path, forgery: str) -> None:
    from dataclasses import replace

    other = Fleet(port.fleet.name)

    def forge(reply: Any) -> Any:
        key = identity.new_key().public_key()
        if forgery == "another_key":
            return replace(port.fleet.enrollment("device-1", key, reply.endpoints))
        if forgery == "another_authority":
            return replace(reply, chain_der=other.enrollment("device-1", key, reply.endpoints).chain_der)
        if forgery == "another_name":
            return replace(reply, client_id="device-2")
        return replace(reply, ticket_keys=())

    port.forge = forge
    with pytest.raises(PeerError):
        enroll(tmp_path / "state", port.claim)
    assert not Keystore(tmp_path / "state").enrolled


def test_aggregator_that_is_not_there_is_named(
    port: EnrollmentPort, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.enroll.BUDGET_S", 0.3)
    claim = Claim(f"127.0.0.1:{free_port()}", authority_digest(port.fleet.authority.der), SECRET).text
    with pytest.raises(PeerError) as caught:
        enroll(tmp_path / "state", claim)
    assert caught.value.code is Code.AGGREGATOR_UNREACHABLE
    assert "127.0.0.1" in str(caught.value)


def test_clock_past_the_certificates_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock a year ahead looks, to TLS, like a server certificate that has ended."""
    monkeypatch.setattr("edge_runtime.enroll.BUDGET_S", 1.0)
    fleet = Fleet("expired")
    fleet.authority.until = datetime.now(UTC) - timedelta(days=1)
    port = EnrollmentPort(fleet)
    port.start()
    try:
        with pytest.raises(LocalError) as caught:
            enroll(tmp_path / "state", port.claim)
    finally:
        port.stop()
    assert caught.value.code is Code.CLOCK_WRONG
    assert "Set the clock" in str(caught.value)


def test_new_enrollment_keeps_what_the_owner_demands(port: EnrollmentPort, tmp_path: Path) -> None:
    from dataclasses import replace

    state = tmp_path / "state"
    enroll(state, port.claim)
    keys = Keystore(state)
    keys.set_policy(replace(keys.load().policy, minimum_cohort=33))
    port.issued.clear()
    enroll(state, port.claim, again=True)
    assert keys.load().policy.minimum_cohort == 33


def test_minimum_noise_cannot_be_talked_down_by_a_new_enrollment(
    port: EnrollmentPort, tmp_path: Path
) -> None:
    """What the enrollment states is taken; one that states less later, or nothing, changes nothing."""
    from dataclasses import replace
    from functools import partial

    state, keys = tmp_path / "state", Keystore(tmp_path / "state")
    for told, kept in ((0.7, 0.7), (0.1, 0.7), (0.0, 0.7), (1.5, 1.5)):
        port.issued.clear()
        policy = PolicyMessage(minimum_noise=told)
        port.forge = partial(replace, policy=policy)
        enroll(state, port.claim, again=True)
        assert keys.load().policy.minimum_noise == kept


@pytest.mark.parametrize(
    ("ahead_ms", "words"),
    [(0, ""), (-30_000, ""), (366 * 86_400_000, "366 days ahead"), (-7_200_000, "120 minutes behind")],
)
def test_clock_complaint(ahead_ms: int, words: str) -> None:
    assert words in clock_complaint(ahead_ms)
    assert bool(clock_complaint(ahead_ms)) == bool(words)


def test_command_takes_the_claim_from_stdin_and_from_a_file_and_never_shows_it(
    port: EnrollmentPort, tmp_path: Path
) -> None:
    state, file = tmp_path / "state", tmp_path / "claim"
    file.write_text(port.claim + "\n")
    command = [sys.executable, "-m", "edge_runtime.cli", "enroll", "--state", str(state)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.run(
        command, input=port.claim, text=True, capture_output=True, env=environment, check=False
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == "Enrolled as device-1 in fleet testing.\n"
    second = subprocess.run(
        [*command, "--claim", str(file)], text=True, capture_output=True, env=environment, check=False
    )
    assert second.returncode == 1
    assert second.stderr.startswith("fedless-edge: There is something here already")
    assert SECRET not in first.stdout + first.stderr + second.stdout + second.stderr
    assert (state / "edge.toml").exists()
