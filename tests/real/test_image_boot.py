"""`make test-image`: an image is built, booted, joins, trains, loses power in the middle of it, boots again, delivers.

Needs the folder in FEDLESS_IMAGE_TEST, where the console's log, the card and the times are left. All processors are
emulated: minutes here are seconds on a board.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.image.run import run
from tests.emulator import PROGRAM, Emulator
from tests.running_fleet import FEDLESS, RunningFleet

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
ROOT = Path(__file__).parents[2]
FUNCTION = ROOT / "examples" / "mnist" / "function-mlp"
WHERE = os.environ.get("FEDLESS_IMAGE_TEST", "")
SLOW_S = 3600.0
GUEST = "10.0.2.2"
STEPS = 800
INTO_TRAINING = 0.2
"""Of the time that the first start took, from the check-in: the instance has started then, and trains for longer."""
TASK = """\
name = "boot-test"
function = "function"
mode = "plain"
rounds = 1

[cohort]
size = 1

[round]
deadline_s = 7200

[client]
learning_rate = 0.1
local_epochs = 1000
max_steps = {steps}
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    if not WHERE:
        pytest.skip("it takes an hour: run `make test-image`")
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed: apt-get install qemu-system-arm")
    found = Path(WHERE)
    found.mkdir(parents=True, exist_ok=True)
    for old in ("console.log", "times.json"):
        (found / old).unlink(missing_ok=True)
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    found = RunningFleet(tmp_path_factory.mktemp("fleet") / "home", host=GUEST)
    found.start(FEDLESS__LISTEN__ADDRESS="127.0.0.1", FEDLESS__POLICY__MODES='["plain"]')
    yield found
    found.close()


@pytest.fixture(scope="module")
def card(folder: Path, fleet: RunningFleet) -> Path:
    """The image with the fleet's claim and some data, on a card of 4 GB."""
    random = np.random.default_rng(1)
    images = random.random((400, 28, 28, 1), np.float32)
    np.savez(folder / "examples.npz", x=images, y=random.integers(0, 10, 400, np.int32))
    (folder / "edge.toml").write_text('[data.default]\npath = "/srv/fedless/examples.npz"\n')
    (folder / "claim.txt").write_text(fleet.claim("board-1") + "\n")
    out = folder / "card.img"
    command = [
        *FEDLESS,
        "image",
        "build",
        "-o",
        out,
        "--claim-file",
        folder / "claim.txt",
        "--hostname",
        "board-1",
    ]
    command += ["--edge-toml", folder / "edge.toml", "--data", folder / "examples.npz"]
    if base := os.environ.get("FEDLESS_IMAGE_BASE"):
        command += ["--base", base]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, timeout=2 * 3600)
    with out.open("r+b") as file:
        file.truncate(4 << 30)
    return out


def checked_in(fleet: RunningFleet, run_id: str) -> bool:
    with fleet.operator() as operator:
        return any(each.checked_in for each in operator.run(run_id).rounds)


def online(fleet: RunningFleet) -> bool:
    with fleet.operator() as operator:
        return "board-1" in operator.online()


def start_run(fleet: RunningFleet, steps: int) -> str:
    function = fleet.folder.parent / "function"
    shutil.copytree(FUNCTION, function)
    manifest = function / "function.toml"
    text = manifest.read_text()
    assert text.count("timeout_ms = 600000") == 1
    manifest.write_text(text.replace("timeout_ms = 600000", f"timeout_ms = {SLOW_S * 2000:.0f}"))
    bundle = pack_and_sign(function, fleet.folder / "publisher" / "publisher.key")
    with fleet.operator() as operator:
        first, second = operator.put(bundle), operator.put(initial_weights(function))
        return operator.start_run(TASK.format(steps=steps), first, second, b"").run_id


def test_an_image_boots_joins_trains_through_a_power_cut_and_delivers(
    folder: Path, fleet: RunningFleet, card: Path
) -> None:
    board, times = Emulator(card, folder), {}
    try:
        board.start("-rtc", "base=1970-01-02")  # a board without a clock
        times["power to joined and online"] = board.wait(lambda: online(fleet), SLOW_S, "joining")
        run_id = start_run(fleet, steps=STEPS)
        times["wake-up to checked in"] = board.wait(lambda: checked_in(fleet, run_id), SLOW_S, "training")
        time.sleep(INTO_TRAINING * times["power to joined and online"])
        with fleet.operator() as operator:
            assert operator.run(run_id).rounds[0].reported == 0, "it was too quick for a power cut"
        board.cut()
        said = board.said()
        assert "event=downloaded" in said, "it had all that it trains with"
        assert "event=round_ended" not in said
        board.start("-rtc", "base=1970-01-02")

        def delivered() -> bool:
            with fleet.operator() as operator:
                return operator.run(run_id).state == "finished"

        times["power to delivered"] = board.wait(delivered, 2 * SLOW_S, "delivering")
        with fleet.operator() as operator:
            (done,) = operator.run(run_id).rounds
            assert (done.reported, done.number) == (1, 1), "the very round that the power was cut in"
    finally:
        board.cut()
        (folder / "times.json").write_text(json.dumps(times, indent=1))
    check_card(board, folder)


def check_card(board: Emulator, folder: Path) -> None:
    assert board.boot_file("fedless-claim.txt") == "", "the claim is erased"
    assert "Joined: board-1 in fleet home." in board.boot_file("fedless-status.txt")
    assert "fedless: Joined: board-1" in board.said(), "the console's banner"
    part = board.root(folder)
    assert "ssh_host_ed25519_key" in run(["debugfs", "-R", "ls /etc/ssh", str(part)])
    blocks = re.search(r"^Block count: +(\d+)$", run(["dumpe2fs", "-h", str(part)]), re.MULTILINE)
    assert blocks is not None
    assert int(blocks[1]) * 4096 > 3 << 30, "the root file system has grown"
    part.unlink()
