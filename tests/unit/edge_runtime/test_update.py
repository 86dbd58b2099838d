"""Updates of the agent: what is staged, what is refused, which version runs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import update, versions
from edge_runtime.update import choose, roll_back, stage, standing
from edge_runtime.versions import Standing
from fedless.protocol import bundle_format, signed
from fedless.protocol import update as container
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from tests.agent_updates import pack, wheel
from tests.edge_fleet import FOREIGN_KEY, PUBLISHER_KEY

PUBLISHERS = {key.key_id: key.public_key for key in [signed.signing_key(PUBLISHER_KEY)]}
GOOD = {"own-1-py3-none-any.whl": wheel({"own/__init__.py": b"x = 1\n", "own-1.data/scripts/run": b"#!"})}


def refused(state: Path, data: bytes) -> Code:
    with pytest.raises(FedlessError) as caught:
        stage(state, io.BytesIO(data), PUBLISHERS)
    assert [path.name for path in (state / "versions").glob("*") if path.is_dir()] == []
    return caught.value.code


def test_an_update_is_staged_and_put_on_trial(tmp_path: Path) -> None:
    stage(tmp_path, io.BytesIO(pack(GOOD)), PUBLISHERS)
    packages = tmp_path / "versions" / "1" / "site-packages"
    assert (packages / "own/__init__.py").read_text() == "x = 1\n"
    assert list(packages.rglob("*.pyc")), "the first start need not compile it"
    assert not list(packages.rglob("run")), "a wheel's scripts have no place here"
    assert choose(tmp_path) == (packages, True)
    assert update.name(tmp_path, 1) == "9.1 (update 1)"


# -- attacks and accidents


def test_an_update_by_a_stranger_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, pack(GOOD, key=FOREIGN_KEY)) is Code.BUNDLE_PUBLISHER


def test_a_forged_list_is_refused(tmp_path: Path) -> None:
    data = pack(GOOD)
    assert refused(tmp_path, data.replace(b'"9.1"', b'"9.2"')) is Code.BUNDLE_FORGED


def test_a_functions_signature_is_none_for_an_agent(tmp_path: Path) -> None:
    bundle = bundle_format.pack({"function.toml": b""}, PUBLISHER_KEY)
    data = bytearray(pack(GOOD))
    data[32:96] = bundle_format.read_header(bundle).signature
    assert refused(tmp_path, bytes(data)) is Code.BUNDLE_FORGED
    assert container.LABEL != bundle_format.LABEL


def test_an_exchanged_wheel_is_refused(tmp_path: Path) -> None:
    data = pack(GOOD)
    assert refused(tmp_path, data[:-1] + bytes([data[-1] ^ 1])) is Code.BUNDLE_DIGEST


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_cut_or_longer_update_is_refused(tmp_path: Path, cut: int) -> None:
    data = pack({"own-1-py3-none-any.whl": wheel({"own.py": b"#" + bytes(range(256)) * 8})})
    assert refused(tmp_path, data[:-cut]) is Code.BUNDLE_MALFORMED
    assert refused(tmp_path, data + b"x" * cut) is Code.BUNDLE_MALFORMED
    assert refused(tmp_path, data[:50]) is Code.BUNDLE_MALFORMED


@pytest.mark.parametrize("name", ["../out.py", "/etc/x.py", "a/../../x.py", "a\\..\\x.py"])
def test_a_wheel_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    assert (
        refused(tmp_path / "state", pack({"own-1-py3-none-any.whl": wheel({name: b""})})) is Code.BUNDLE_PATH
    )
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize("name", ["../own.whl", "a/b.whl", ".hidden.whl", "own.txt"])
def test_a_file_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(PeerError) as caught:
        pack({name: b"x"})
    assert caught.value.code is Code.BUNDLE_PATH


def test_an_older_or_repeated_update_is_refused(tmp_path: Path) -> None:
    """A captured, signed, old version with a known hole."""
    stage(tmp_path, io.BytesIO(pack(GOOD, 7)), PUBLISHERS)
    with pytest.raises(PeerError) as caught:
        stage(tmp_path, io.BytesIO(pack(GOOD, 6)), PUBLISHERS)
    assert caught.value.code is Code.BUNDLE_OLDER
    tried = versions.starting(standing(tmp_path))
    (tmp_path / "versions" / "standing.json").write_text(json.dumps(versions.to_values(tried)))
    stage(tmp_path, io.BytesIO(pack(GOOD, 7)), PUBLISHERS)
    assert standing(tmp_path) == tried, "asked again: nothing to do"
    roll_back(tmp_path)
    with pytest.raises(PeerError):
        stage(tmp_path, io.BytesIO(pack(GOOD, 7)), PUBLISHERS)


@pytest.mark.parametrize(
    "changes",
    [{"python": "3.99"}, {"machine": "armv7l"}, {"needs": {"numpy": "0.1"}}, {"needs": {"no-such": "1"}}],
)
def test_an_update_for_another_machine_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refused(tmp_path, pack(GOOD, **changes)) is Code.BUNDLE_RUNTIME


def test_what_a_power_cut_left_is_no_version(tmp_path: Path) -> None:
    left = tmp_path / "versions" / ".1.new" / "site-packages"
    left.mkdir(parents=True)
    assert choose(tmp_path) == (None, False)
    stage(tmp_path, io.BytesIO(pack(GOOD)), PUBLISHERS)
    assert not left.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"current": "1"}', '{"unknown": 1}', '{"current": true}'])
def test_a_standing_that_cannot_be_read_means_the_systems_version(tmp_path: Path, text: str) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "standing.json").write_text(text)
    assert choose(tmp_path) == (None, False)


def test_a_version_that_is_gone_gives_way_to_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    lost = Standing(current=2, before=0, newest_seen=2)
    (tmp_path / "versions" / "standing.json").write_text(json.dumps(versions.to_values(lost)))
    assert choose(tmp_path) == (None, False)
    assert standing(tmp_path).given_up == 2


def test_old_versions_leave_the_disk(tmp_path: Path) -> None:
    for sequence in (1, 2, 3):
        stage(tmp_path, io.BytesIO(pack(GOOD, sequence)), PUBLISHERS)
        before = versions.proved(standing(tmp_path))
        (tmp_path / "versions" / "standing.json").write_text(json.dumps(versions.to_values(before)))
    choose(tmp_path)
    assert {path.name for path in (tmp_path / "versions").iterdir() if path.is_dir()} == {"2", "3"}


def test_rolling_back_the_systems_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        roll_back(tmp_path)
    assert caught.value.code is Code.WRONG_STATE


# -- which version runs


def test_a_trial_has_three_starts() -> None:
    now = versions.staged(Standing(current=4, newest_seen=4), 5)
    for tries in (1, 2, 3):
        now = versions.starting(now)
        assert (now.current, now.tries) == (5, tries)
    now = versions.starting(now)
    assert (now.current, now.trial, now.given_up, now.newest_seen) == (4, False, 5, 5)
    assert versions.starting(now) == now


def test_what_comes_back_is_what_was_proved_last() -> None:
    now = versions.staged(versions.staged(Standing(current=4), 5), 6)
    assert versions.back(now).current == 4, "5 was never proved"
    assert versions.staged(versions.proved(now), 7).before == 6


def test_a_proved_version_is_not_counted_any_more() -> None:
    now = versions.proved(versions.starting(versions.staged(Standing(), 1)))
    for _ in range(9):
        now = versions.starting(now)
    assert (now.current, now.tries) == (1, 0)
