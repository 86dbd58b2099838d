"""An update of the agent: our code as a wheel, signed; with the wheels of its libraries where they changed.

Mostly it is our code alone, two hundred kilobytes, and names the versions of the libraries that it needs: a device that
has others refuses it. Called by `fedless image update`; the device's side is `edge_runtime.update`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cloud_adapters import wheels
from fedless import __version__
from fedless.image import runtime
from fedless.protocol import update as container
from fedless.protocol.update import ANY, File, Update

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_TIME = (1980, 1, 1, 0, 0, 0)
_PIECE = 1 << 20


@dataclass(frozen=True)
class Made:
    """What was made."""

    path: Path
    update: Update
    file_bytes: int


def make(out: Path, private_key: bytes, sequence: int, version: str = "", architecture: str = "") -> Made:
    """Write a signed update. `architecture` (aarch64, x86_64): with all libraries, for Python 3.13; "": our code alone.

    Raises `LocalError` NOT_INSTALLED with what pip said, `PeerError` for numbers that no device would take.
    """
    with tempfile.TemporaryDirectory(prefix=".fedless-update-", dir=out.absolute().parent) as folder:
        files = [_wheel(Path(folder))]
        if architecture:
            target = wheels.Target(runtime.PYTHON, architecture, runtime.GLIBC)
            wheels.download(Path(folder) / "libraries", target, wheels.pinned(runtime.lock()))
            files += sorted((Path(folder) / "libraries").glob("*.whl"))
        update = Update(
            version or __version__,
            sequence,
            runtime.PYTHON if architecture else "",
            architecture or ANY,
            {} if architecture else pins(),
            tuple(File(path.name, path.stat().st_size, _digest(path)) for path in files),
        )
        with out.open("wb") as target_file:
            target_file.write(container.pack_head(update, private_key))
            for path in files:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, target_file, _PIECE)
    return Made(out, update, out.stat().st_size)


def pins() -> dict[str, str]:
    """The libraries that a device has by our image and package, name to version."""
    return {
        name.lower().replace("_", "-"): version for name, version in _PIN.findall(runtime.lock().read_text())
    }


def _wheel(folder: Path) -> Path:
    """Our code as a wheel, the same for the same code."""
    tree = folder / "tree"
    runtime.code(tree)
    about = f"fedless-{__version__}.dist-info"
    (tree / about).mkdir()
    (tree / about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fedless\nVersion: {__version__}\n")
    (tree / about / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: fedless\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    paths = sorted(path for path in runtime.walk(tree) if path.is_file())
    record = "".join(f"{path.relative_to(tree)},{_hash(path)},{path.stat().st_size}\n" for path in paths)
    (tree / about / "RECORD").write_text(f"{record}{about}/RECORD,,\n")
    wheel = folder / f"fedless-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in [*paths, tree / about / "RECORD"]:
            entry = zipfile.ZipInfo(str(path.relative_to(tree)), _TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes(), compresslevel=9)
    return wheel


def _hash(path: Path) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
