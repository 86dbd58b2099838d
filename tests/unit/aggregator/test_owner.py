"""What root writes into a fleet's folder belongs to the service's user, who could lay links for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aggregator import lock
from aggregator.founding import Ports, found_fleet, write_private
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, LocalError
from tests.devices_fleet import say
from tests.running_fleet import RunningFleet, now_ms

SOMEBODY, GROUP = 4217, 4218
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's folder is written")


def given_away(folder: Path) -> Path:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, SOMEBODY, GROUP)
    return folder


def strangers(folder: Path) -> list[str]:
    """What is not private and the folder's owner's."""
    found = []
    for path in (folder, *folder.rglob("*")):
        seen = path.lstat()
        private = stat.S_IMODE(seen.st_mode) & 0o077 == 0
        if (seen.st_uid, seen.st_gid) != (SOMEBODY, GROUP) or not private:
            found.append(f"{path.relative_to(folder)}: {seen.st_uid} {stat.S_IMODE(seen.st_mode):o}")
    return found


@as_root
def test_commands_of_root_leave_the_folder_to_its_owner(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "fleet", ports=Ports(7443, 7444, 8883))
    given_away(fleet.folder)
    say(fleet, "fleet", "claim", "--name", "pi-1")
    say(fleet, "fleet", "rotate-keys", "ticket")
    say(fleet, "fleet", "rotate-keys", "ticket", "--end")
    for _ in range(3):
        say(fleet, "fleet", "authority", "roll-over")
    say(fleet, "operator", "add", "anna", "--out", fleet.folder / "operators" / "anna")
    assert (fleet.folder / "state" / "fedless.db").exists()
    assert (fleet.folder / "operators" / "anna" / "cert.key").exists()
    assert strangers(fleet.folder) == []


@as_root
def test_root_does_not_follow_a_link_that_the_owner_laid(tmp_path: Path) -> None:
    secret = tmp_path / "of-root"
    secret.write_text("root's")
    folder = tmp_path / "folder"
    folder.mkdir()
    given_away(folder)
    for name in (".ticket.key.new", "lock", "fedless.db"):
        (folder / name).symlink_to(secret)
    write_private(folder / "ticket.key", b"new")
    assert (folder / "ticket.key").lstat().st_uid == SOMEBODY
    with pytest.raises(LocalError) as caught, lock.hold(folder):
        pass
    assert caught.value.code is Code.STATE_MISSING
    assert secret.read_text() == "root's"
    assert secret.stat().st_uid == 0


def test_own_files_stay_our_own_and_private(tmp_path: Path) -> None:
    found_fleet(tmp_path / "home", "home", "127.0.0.1", Ports(0, 0, 0), now_ms())
    Database.open(f"sqlite:///{tmp_path / 'home' / 'state' / 'fedless.db'}").close()
    write_private(tmp_path / "home" / "deep" / "er" / "file", b"x")
    write_private(tmp_path / "home" / "deep" / "er" / "file", b"y")
    for path in (tmp_path / "home").rglob("*"):
        assert path.stat().st_uid == os.geteuid()
    deep = tmp_path / "home" / "deep"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (deep, deep / "er", deep / "er" / "file")] == [
        0o700,
        0o700,
        0o600,
    ]
    assert (deep / "er" / "file").read_bytes() == b"y"
