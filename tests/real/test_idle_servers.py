"""Fork servers that local calls keep for the next one are in the device's budget of memory, and give way to others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_runtime.budget import FOLDER, Budget
from edge_runtime.config import FILE, load
from edge_runtime.functions import Functions
from edge_runtime.install import install
from edge_runtime.pool import Pool
from fedless.protocol import bundle_format
from tests.edge_fleet import PUBLISHER_KEY, Fleet
from tests.edge_processes import below
from tests.running_fleet import wait_until

pytestmark = pytest.mark.real
ALL_MB = 1000
SETTINGS = (
    f"[local]\nwait_s = 30\n[warm]\nmemory_mb = 500\nkeep_s = 3600\n[limits]\ntotal_mb = {ALL_MB}\n"
    '[data.gate]\nkind = "own"\npath = "gate"\n'
)
MANIFEST = (
    'format = 1\n[function]\nname = "waiter"\nversion = 1\nentry = "main:handle"\nmemory_mb = 900\n'
    'timeout_ms = 60000\ndata_mounts = ["gate"]\n'
)
CODE = (
    "import os, time\n\ndef handle(event, context):\n    while not os.listdir(context.data['gate']):\n"
    "        time.sleep(0.01)\n    return event\n"
)


@pytest.fixture
def state(fleet: Fleet, tmp_path: Path) -> Path:
    """A device with a function that answers when there is a file in the folder `gate`."""
    state = fleet.device(tmp_path / "state", "device-1", 1)
    (state / "gate").mkdir()
    (state / FILE).write_text(SETTINGS)
    files = {"function.toml": MANIFEST.encode(), "main.py": CODE.encode()}
    install(state, bundle_format.pack(files, PUBLISHER_KEY))
    return state


@pytest.fixture
def pool(state: Path) -> Iterator[Pool]:
    functions = Functions(state)
    with closing(functions), closing(Pool(state, load(state / FILE), functions)) as pool:
        yield pool


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """In a thread, which is over when the block is."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)


def ticked(pool: Pool) -> bool:
    """Time passes, as the local API lets it."""
    pool.tick()
    return True


def claim_all(state: Path) -> None:
    with Budget(state, ALL_MB).claim(ALL_MB, 60):
        pass


def claims(state: Path, kind: str = "run") -> list[int]:
    """The MB of those that run, or that wait."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (state / FOLDER).glob(f"*.{kind}"))


def test_an_idle_server_holds_its_memory_and_gives_way_to_who_waits(state: Path, pool: Pool) -> None:
    (state / "gate" / "open").touch()
    before = below()
    for start in ("cold", "warm"):
        assert pool.invoke("waiter", 5, "1").start == start
        (held_mb,) = claims(state)
        assert 0 < held_mb < 500, "what the server has, not what a call may take"
    assert len(below()) > len(before)
    with beside(lambda: claim_all(state)):
        wait_until(lambda: claims(state, "wait"), 60)
        wait_until(lambda: ticked(pool) and not claims(state, "wait"), 60)
    wait_until(lambda: below() == before, 60)
    assert claims(state) == []
    assert pool.invoke("waiter", 6, "1").start == "cold"


def test_a_server_is_not_kept_where_somebody_has_waited_for_its_memory(state: Path, pool: Pool) -> None:
    before = below()
    with beside(lambda: pool.invoke("waiter", 5, "1")):
        wait_until(lambda: claims(state) == [900], 60)
        with beside(lambda: claim_all(state)):
            wait_until(lambda: claims(state, "wait") == [ALL_MB], 60)
            (state / "gate" / "open").touch()
    wait_until(lambda: below() == before, 60)
    assert claims(state) == []
