"""The identity on the disk: private, whole, and damaged ones are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.keystore import Keystore, authority_fleet, policy_from, policy_values
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.policy import Policy
from tests.edge_fleet import Fleet


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet("homes")


def test_identity_is_stored_privately_and_read_back(fleet: Fleet, tmp_path: Path) -> None:
    state = fleet.device(tmp_path / "state", "device-1", 7443, 8883)
    found = Keystore(state).load()
    assert (found.fleet, found.client_id) == ("homes", "device-1")
    assert found.server_name == "aggregator.homes.fedless"
    assert found.endpoints.mqtt == ("127.0.0.1:8883",)
    assert list(found.publishers) == [key.key_id for key in found.publisher_keys]
    assert "PRIVATE" not in repr(found)
    assert Keystore(state).open_files() == []
    assert (state / "identity").stat().st_mode & 0o077 == 0
    (state / "identity" / "key.pem").chmod(0o644)
    assert Keystore(state).open_files() == [str(state / "identity" / "key.pem")]


def test_key_is_made_once(tmp_path: Path) -> None:
    keys = Keystore(tmp_path)
    first = keys.make_key().private_numbers()
    assert keys.make_key().private_numbers() == first
    assert not keys.enrolled


@pytest.mark.parametrize("name", ["fleet.json", "chain.pem", "key.pem"])
def test_missing_part_is_named(fleet: Fleet, tmp_path: Path, name: str) -> None:
    state = fleet.device(tmp_path / "state", "device-1", 1)
    (state / "identity" / name).unlink()
    with pytest.raises(LocalError) as caught:
        Keystore(state).load()
    assert caught.value.code is (Code.STATE_MISSING if name == "fleet.json" else Code.STATE_CORRUPT)
    assert "enroll" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fleet": 1}'])
def test_damaged_fleet_file_is_named(fleet: Fleet, tmp_path: Path, text: str) -> None:
    state = fleet.device(tmp_path / "state", "device-1", 1)
    (state / "identity" / "fleet.json").write_text(text)
    with pytest.raises(LocalError) as caught:
        Keystore(state).load()
    assert caught.value.code is Code.STATE_CORRUPT


def test_policy_is_changed_on_the_device_and_survives(fleet: Fleet, tmp_path: Path) -> None:
    state = fleet.device(tmp_path / "state", "device-1", 1)
    keys = Keystore(state)
    wanted = replace(keys.load().policy, minimum_cohort=20, modes=frozenset({Mode.PAIRWISE}))
    keys.set_policy(wanted)
    assert keys.load().policy == wanted
    assert json.loads((state / "identity" / "fleet.json").read_bytes())["client_id"] == "device-1"


def test_owner_chooses_another_helper_which_has_followed_no_list(fleet: Fleet, tmp_path: Path) -> None:
    state = fleet.device(tmp_path / "state", "device-1", 1)
    keys, path = Keystore(state), state / "identity" / "fleet.json"
    one, other = bytes(range(64)), bytes(range(64, 128))
    keys.set_policy(keys.load().policy.after([one, other]))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trust": {"helper": 7, "ticket": 8}}))
    keys.set_policy(replace(keys.load().policy, minimum_cohort=20))
    assert keys.load().policy.helpers == (one, other)
    assert keys.load().trust_numbers == {"helper": 7, "ticket": 8}
    assert main(["policy", "--state", str(state), f"helper_key_digest={'ab' * 32}"]) == 0
    after = keys.load()
    assert after.policy.helpers == ()
    assert (after.policy.helper_key_digest, after.policy.helper_signing_key) == (b"\xab" * 32, b"")
    assert after.trust_numbers == {"ticket": 8}
    kept = json.loads(path.read_text())["policy"]
    assert not {"helper_signing_key", "helper_also"} & kept.keys(), "an earlier version can read it"


def test_policy_values_are_checked() -> None:
    assert policy_from(policy_values(Policy())) == Policy()
    for wrong in (
        {"minimum_cohort": -1},
        {"modes": ["loud"]},
        {"modes": "plain"},
        {"colour": 1},
        {"trust": "x"},
        {"helper_signing_key": "00"},
        {"helper_also": "00" * 64},
        {"helper_also": ["00"]},
    ):
        with pytest.raises((ValueError, TypeError)):
            policy_from(policy_values(Policy()) | wrong)


def test_certificate_that_is_no_authority_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    der, name = authority_fleet(fleet.authority.pem)
    assert (der, name) == (fleet.authority.der, "homes")
    state = fleet.device(tmp_path / "state", "device-1", 1)
    for pem in (b"", b"no certificate", (state / "identity" / "chain.pem").read_bytes()):
        with pytest.raises(PeerError) as caught:
            authority_fleet(pem)
        assert caught.value.code is Code.CLAIM_FOREIGN
