"""Updates of the agent: verified and staged beside the running version, started on trial, taken back if they fail.

Everything lies in `DIR/versions` and belongs to the agent's user: `<sequence>/site-packages` is put before the system's
own packages. `stage` is called by the participant and `fedless-edge update install`, `become` by `fedless-edge run`
before anything of the agent runs. An agent on trial proves itself (`proving`) once it has reached the broker.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edge_runtime.disk import sync_folder, write_whole
from edge_runtime.log import say
from edge_runtime.process import own_start
from edge_runtime.proving import AGAIN, FOLDER, STANDING, TRIAL
from edge_runtime.versions import Standing, back, from_values, staged, starting, to_values
from fedless.protocol import update as container
from fedless.protocol.errors import Code, LocalError, PeerError

PACKAGES, ABOUT = "site-packages", "about.json"
CHOSEN = "FEDLESS_CHOSEN"
"""In the environment of the version that was chosen, on its way to the agent."""
_PIECE = 1 << 20
_UNPACKED_MAX = 1 << 30
BYTES_MAX = 512 << 20


def standing(state: Path) -> Standing:
    """How it stands; the version of the system if nothing readable says otherwise."""
    try:
        return from_values(json.loads((state / FOLDER / STANDING).read_bytes()))
    except (OSError, ValueError, TypeError):
        return Standing()


def stage(state: Path, file: BinaryIO, publishers: Mapping[bytes, bytes]) -> container.Update:
    """Verify an update and put it on trial; it runs from the agent's next start on.

    Raises `PeerError` BUNDLE_* (forged, malformed, older than one that was seen, for another Python or machine),
    `LocalError(DISK_FULL)`; nothing of it is left then.
    """
    head = container.read_head(file.read(container.HEAD.size))
    found = container.read_list(file.read(head.list_bytes), head, publishers)
    now = standing(state)
    if found.sequence == now.current:
        return found  # asked again, after a power cut
    _check(found, now)
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / str(found.sequence)
    building = folder / f".{found.sequence}.new"
    shutil.rmtree(building, ignore_errors=True)
    try:
        _unpack(found, file, building)
        compileall.compile_dir(building, quiet=2)
        (building / ABOUT).write_text(json.dumps({"version": found.version}))
        os.sync()
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
        sync_folder(folder)
    except OSError as error:
        raise LocalError(Code.DISK_FULL, f"{folder} cannot hold the update ({error.strerror}).") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _keep(state, staged(now, found.sequence))
    _prune(folder, standing(state))
    return found


def wanted(event: str) -> bytes:
    """The digest of the update that an order's event names. Raises `PeerError(MALFORMED)`."""
    try:
        digest = bytes.fromhex(json.loads(event)["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(Code.MALFORMED, 'Expected an event {"digest": ...} with 64 hex digits.') from error
    if len(digest) != hashlib.sha256().digest_size:
        raise PeerError(Code.MALFORMED, f"Expected a digest of 32 bytes, found {len(digest)}.")
    return digest


@contextmanager
def download(state: Path, digest: bytes) -> Iterator[BinaryIO]:
    """A file for an update that is being fetched, gone afterwards."""
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f".{digest.hex()[:16]}.update"
    try:
        with path.open("w+b") as file:
            yield file
    except OSError as error:
        raise LocalError(Code.DISK_FULL, f"{folder} cannot hold the update ({error.strerror}).") from error
    finally:
        path.unlink(missing_ok=True)


def whole(file: BinaryIO, digest: bytes) -> BinaryIO:
    """The file from its beginning, if it is what was announced. Raises `PeerError(BUNDLE_DIGEST)`."""
    file.seek(0)
    found = hashlib.sha256()
    while piece := file.read(_PIECE):
        found.update(piece)
    if found.digest() != digest:
        raise PeerError(Code.BUNDLE_DIGEST, f"Announced was {digest.hex()}, found was {found.hexdigest()}.")
    file.seek(0)
    return file


def tell_agent() -> None:
    """The participant: let the agent that started it go on as what is chosen, once this participant has ended."""
    if os.environ.get(AGAIN):
        os.kill(os.getppid(), signal.SIGUSR1)


def choose(state: Path) -> tuple[Path | None, bool]:
    """Before a start: where the packages of the version to run lie (None: the system's), and whether it is on trial."""
    before = standing(state)
    now = starting(before)
    while now.current and not (state / FOLDER / str(now.current) / PACKAGES).is_dir():
        now = back(now)
    if now != before:
        _keep(state, now)
    if before.newest_seen:
        _prune(state / FOLDER, now)
    return (state / FOLDER / str(now.current) / PACKAGES if now.current else None), now.trial


def become(state: Path, trial_s: int) -> None:
    """`fedless-edge run` of the system's own version: go on as the version that is chosen, which is on trial perhaps.

    The alarm outlives the exec: an agent that has not reached the broker by then is ended, and whoever restarts it
    comes by here again.
    """
    if os.environ.pop(CHOSEN, ""):
        return
    signal.alarm(0)
    packages, trial = choose(state)
    own, absolute = own_start(), str(state.absolute())
    arguments = ["edge_runtime.cli", "run", "--state", absolute]
    os.environ[AGAIN] = json.dumps([*own, *arguments])
    os.environ.pop(TRIAL, None)
    if trial:
        os.environ[TRIAL] = absolute
        signal.alarm(trial_s)
    if packages is not None:
        say("run", "version", sequence=packages.parent.name, trial=trial)
        command = [*own[:-1], f"{packages}:{own[-1]}", *arguments]
        os.execve(command[0], command, os.environ | {CHOSEN: "1"})  # noqa: S606 - no shell is wanted


def roll_back(state: Path) -> Standing:
    """Give the current update up. Raises `LocalError(WRONG_STATE)` if there is none."""
    before = standing(state)
    if not before.current:
        raise LocalError(
            Code.WRONG_STATE, "The version that came with the system runs; there is none before it."
        )
    _keep(state, back(before))
    return standing(state)


def name(state: Path, sequence: int) -> str:
    """A version for people."""
    if not sequence:
        return "the system's"
    with suppress(OSError, ValueError, KeyError):
        return f"{json.loads((state / FOLDER / str(sequence) / ABOUT).read_bytes())['version']} (update {sequence})"
    return f"update {sequence}"


def _check(found: container.Update, now: Standing) -> None:
    if found.sequence <= now.newest_seen:
        raise PeerError(
            Code.BUNDLE_OLDER, f"Update {found.sequence}; {now.newest_seen} was already seen here."
        )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found.python not in ("", python) or found.machine not in (container.ANY, platform.machine()):
        raise PeerError(
            Code.BUNDLE_RUNTIME,
            f"It is for Python {found.python or 'any'} on {found.machine}; this is {python} on {platform.machine()}.",
        )
    here = {package: _version(package) for package in found.needs}
    lacking = [
        f"{name} {wanted} (here: {here[name]})"
        for name, wanted in found.needs.items()
        if here[name] != wanted
    ]
    if lacking:
        raise PeerError(
            Code.BUNDLE_RUNTIME,
            f"It needs {', '.join(lacking)}.",
            fix="Send an update that brings them along.",
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _unpack(found: container.Update, file: BinaryIO, building: Path) -> None:
    packages = building / PACKAGES
    packages.mkdir(parents=True)
    room = _UNPACKED_MAX
    for each in found.files:
        wheel = building / each.name
        _copy(each, file, wheel)
        room -= _install(wheel, packages, room)
        wheel.unlink()
    if file.read(1):
        raise PeerError(Code.BUNDLE_MALFORMED, "Something follows the last file.")


def _copy(each: container.File, file: BinaryIO, target: Path) -> None:
    digest, left = hashlib.sha256(), each.bytes
    with target.open("wb") as copy:
        while left:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise PeerError(Code.BUNDLE_MALFORMED, f"It ends in the middle of {each.name}.")
            digest.update(piece)
            copy.write(piece)
            left -= len(piece)
    if digest.hexdigest() != each.digest:
        raise PeerError(Code.BUNDLE_DIGEST, f"{each.name} is not the file that was signed.")


def _install(wheel: Path, packages: Path, room: int) -> int:
    """Unpack a wheel; its size. What a wheel wants elsewhere (scripts, headers) is left out."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if size > room:
                raise PeerError(Code.BUNDLE_TOO_LARGE, f"{size} bytes unpacked; at most {_UNPACKED_MAX}.")
            for entry in entries:
                place = _place(entry.filename)
                if place is None:
                    continue
                target = packages / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _PIECE)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise PeerError(Code.BUNDLE_MALFORMED, f"{wheel.name} cannot be read: {error}.") from None
    return size


def _place(entry: str) -> PurePosixPath | None:
    """Where a wheel's file goes below site-packages. Raises `PeerError(BUNDLE_PATH)` for one that leads out."""
    path = PurePosixPath(entry)
    if path.is_absolute() or ".." in path.parts or "\\" in entry or "\0" in entry:
        raise PeerError(Code.BUNDLE_PATH, f"The name {entry!r} is not allowed.")
    if path.parts[0].endswith(".data"):
        inner = path.parts[1:]
        return (
            PurePosixPath(*inner[1:])
            if inner[:1] in (("purelib",), ("platlib",)) and len(inner) > 1
            else None
        )
    return path


def _keep(state: Path, now: Standing) -> None:
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(folder / STANDING, json.dumps(to_values(now)).encode())


def _prune(folder: Path, now: Standing) -> None:
    """Versions that neither run nor could come back."""
    kept = {str(now.current), str(now.before)}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
