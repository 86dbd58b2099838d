"""The helper's keys in the fleet's folder: what devices are told of them, and files that do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.config import HelperSettings
from aggregator.helper_keys import HelperKeys, read_helper_keys
from aggregator.store import fleet as store
from fedless.helper import rotation
from fedless.helper.config import KeySettings, load
from fedless.helper.main import found
from fedless.protocol.crypto import key_id
from fedless.protocol.errors import Code, LocalError
from tests.unit.aggregator.test_enrollment import NOW_MS, Fleet, request_for


class Folder:
    """The helper's own directory, and the fleet's copy of what is public in it."""

    def __init__(self, tmp_path: Path) -> None:
        found(tmp_path / "own", "home", b"")
        self.keys: KeySettings = load(tmp_path / "own" / "helper.toml").keys
        self.copy = tmp_path / "helper"
        self.copy.mkdir()
        self.settings = HelperSettings(address="h.example:1", directory=self.copy)
        self.carry("hpke.pub", "signing.pub")

    def carry(self, *names: str, suffix: str = "") -> None:
        """By hand, as the operators do."""
        for name in names:
            path = Path(name)
            shutil.copy(self.keys.hpke.with_name(f"{path.stem}{suffix}{path.suffix}"), self.copy / name)

    def read(self) -> HelperKeys:
        return read_helper_keys(self.settings, "home")

    def refused(self) -> Code:
        with pytest.raises(LocalError) as caught:
            self.read()
        return caught.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fedless.db")
    yield made
    made.database.close()


def test_rotation_is_carried_over_step_by_step(folder: Folder) -> None:
    assert read_helper_keys(HelperSettings(), "home") == HelperKeys()
    first = folder.read()
    assert first.lists == ()
    rotation.begin(folder.keys, "home", NOW_MS)
    folder.carry("helper-lists.json")
    both = folder.read()
    assert (both.digest, both.signing_key, len(both.lists)) == (first.digest, first.signing_key, 1)
    folder.carry("hpke.pub", "signing.pub", suffix="-next")
    assert folder.read().digest != first.digest
    rotation.end(folder.keys, "home", NOW_MS)
    folder.carry("helper-lists.json")
    assert len(folder.read().lists) == 2


def test_helper_without_a_signing_key_is_as_it_was(folder: Folder) -> None:
    (folder.copy / "signing.pub").unlink()
    assert folder.read().signing_key == b""


def test_files_that_do_not_fit_are_told(folder: Folder) -> None:
    rotation.begin(folder.keys, "home", NOW_MS)
    rotation.end(folder.keys, "home", NOW_MS)
    folder.carry("helper-lists.json")
    assert folder.refused() is Code.CONFIG_INVALID, "hpke.pub is still the old one, which nobody may seal to"
    folder.carry("hpke.pub", "signing.pub")
    folder.read()
    lists = folder.copy / "helper-lists.json"
    lists.write_text(lists.read_text().replace('"number": ', '"number": 1'))
    assert folder.refused() is Code.CONFIG_INVALID
    lists.write_text("{")
    assert folder.refused() is Code.STATE_CORRUPT
    (folder.copy / "signing.pub").write_text("00")
    assert folder.refused() is Code.STATE_CORRUPT


async def test_only_who_pins_that_helper_lacks_its_list(fleet: Fleet, folder: Folder) -> None:
    rotation.begin(folder.keys, "home", NOW_MS)
    folder.carry("helper-lists.json")
    lists = folder.read().lists
    fleet.registrar.terms = replace(fleet.registrar.terms, lists=lists)
    (claim,) = await fleet.registrar.issue_claims(1, client_ids=["pi-1"])
    enrolled = await fleet.registrar.enroll(request_for(claim.text), "192.0.2.1")
    assert enrolled.trust_lists == lists
    (row,) = await fleet.database.run(store.all_clients)
    old, new = (key_id(member).hex() for member in lists[0].members)
    for told, lacking in (([], []), ([old], ["helper"]), ([old, new], []), (["another"], [])):
        assert fleet.registrar.lacks(replace(row, profile={"trusts": told})) == lacking
