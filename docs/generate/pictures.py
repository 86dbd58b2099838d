"""The pictures of the documentation: `make pictures` runs an experiment and looks at it, meanwhile and afterwards.

`pictures.py FOLDER`: dashboard pages of the aggregator while its run goes on, and the experiment's report, taken by the
browser that FEDLESS_BROWSER names. An experiment takes as long as it takes; the pictures show what it measured here.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
FEDLESS = (sys.executable, "-c", "from fedless.console.main import main; main()")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-sync", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip
CHROME = 160
"""Pixels of a window that are not the page's: asked for as well, and cut off."""
UNTIL_S, BROWSER_S, BYTES_MAX = 900.0, 90.0, 200_000
ROUND = 8
"""The round that is looked at, of twelve; the run goes on behind it."""


class Camera:
    """A browser without a window."""

    def __init__(self, browser: str, target: Path, profile: Path) -> None:
        self._browser, self._target, self._profile = browser, target, profile

    def take(self, name: str, url: str, width: int, height: int) -> None:
        """One picture."""
        path = self._target / f"{name}.png"
        path.unlink(missing_ok=True)
        command = [self._browser, *FLAGS, f"--user-data-dir={self._profile}", f"--screenshot={path}"]
        command += [f"--window-size={width},{height + CHROME}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=BROWSER_S)
        with Image.open(path) as taken:
            cut = taken.convert("RGB").crop((0, 0, width, height)).quantize(128, dither=Image.Dither.NONE)
        cut.save(path, optimize=True)
        size = path.stat().st_size
        if size > BYTES_MAX:
            sys.exit(f"{path} has {size} bytes, more than {BYTES_MAX}")
        sys.stdout.write(f"{path}: {size} bytes\n")


def main() -> None:
    """Take them all."""
    target = Path(sys.argv[1]).absolute()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        camera = Camera(os.environ["FEDLESS_BROWSER"], target, Path(folder) / "profile")
        port = _free_port()
        process = subprocess.Popen(
            [*FEDLESS, "experiment", "run", str(HERE / "pictures.toml"), "--out", f"{folder}/runs"],
            env={**os.environ, "FEDLESS__WEB__PORT": str(port)},
        )
        try:
            _dashboard(camera, process, f"http://127.0.0.1:{port}")
            if process.wait(UNTIL_S):
                sys.exit("the experiment failed")
        finally:
            process.terminate()
            process.wait(60)
        (report,) = Path(folder, "runs").glob("*/report.html")
        camera.take("report", report.as_uri(), 1240, 1080)


def _dashboard(camera: Camera, process: subprocess.Popen[bytes], url: str) -> None:
    """Fleet, run and round, as soon as the run is well under way."""
    end = time.monotonic() + UNTIL_S
    while True:
        run = re.search(r'href="(/runs/[^"/]+)"', _page(f"{url}/"))
        if run and f"{run[1]}/rounds/{ROUND}" in _page(url + run[1]):
            break
        if process.poll() is not None or time.monotonic() > end:
            sys.exit("the experiment did not get that far")
        time.sleep(0.1)
    camera.take("dashboard", f"{url}/", 1100, 760)
    camera.take("run", url + run[1], 1100, 900)
    camera.take("round", f"{url}{run[1]}/rounds/4", 1100, 700)


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own, on loopback
            return str(reply.read().decode())
    except OSError:
        return ""  # not yet there


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
