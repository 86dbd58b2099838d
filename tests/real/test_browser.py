"""The dashboard in a real browser: what it shows, as text and as pictures.

`make test-browser` names the browser in FEDLESS_BROWSER and keeps pictures in build/dashboard.
"""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from aggregator.store import fleet
from tests.running_fleet import ROOT, now_ms
from tests.simulation.world import World
from tests.site import LOOPBACK, Site, finished

BROWSER = os.environ.get("FEDLESS_BROWSER", "")
PICTURES = ROOT / "build" / "dashboard"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not BROWSER, reason="needs a browser in FEDLESS_BROWSER: make test-browser"),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-sync", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", count=4)
    made = Site(world, tmp_path)
    made.url = await made.web.start(LOOPBACK, 0)
    profile = {
        "not_before_ms": 0,
        "not_before_reason": "",
        "memory_mb": 512,
        "tflite_runtime": "ai-edge-litert 2.3.0",
    }
    for number in range(4):
        await world.database.run(partial(join, number=number, profile=profile))
    yield made
    await made.web.stop()
    await world.close()


def join(connection: Connection, number: int, profile: Mapping[str, Any]) -> None:
    """A client that is enrolled and has told of itself."""
    name = f"client-{number}"
    fleet.add_claim(connection, name, bytes([number]) * 32, {}, 0, 0)
    fleet.enroll(connection, name, now_ms())
    fleet.set_profile(connection, name, profile, now_ms())


async def browse(folder: Path, url: str, *more: str) -> str:
    """What the browser prints; it must end by itself."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *more, url]
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=90, cwd=folder
    )
    return done.stdout


async def test_the_browser_shows_fleet_run_and_round(site: Site, tmp_path: Path) -> None:
    run_id = await finished(site.world)
    first = await browse(tmp_path, f"{site.url}/", "--dump-dom")
    assert f'href="/runs/{run_id}"' in first
    assert len(re.findall(r"<td>client-\d</td>", first)) == 4
    run = await browse(tmp_path, f"{site.url}/runs/{run_id}", "--dump-dom")
    assert "<polyline" in run
    assert "2 / 2" in run
    assert f'href="/runs/{run_id}/rounds/2"' in run


async def test_pictures_are_taken_of_each_page(site: Site, tmp_path: Path) -> None:
    run_id = await finished(site.world)
    PICTURES.mkdir(parents=True, exist_ok=True)
    pages = {"fleet": "/", "run": f"/runs/{run_id}", "round": f"/runs/{run_id}/rounds/2"}
    for name, path in pages.items():
        picture = PICTURES / f"{name}.png"
        picture.unlink(missing_ok=True)
        await browse(tmp_path, site.url + path, f"--screenshot={picture}", "--window-size=1200,900")
        data = picture.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (1200, 900)
        assert len(data) > 10_000, "an empty page is smaller"
