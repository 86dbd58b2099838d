"""This device's personal parameters: `DIR/heads/<run>.<round>.head`, which never leave it.

A round's new head is on the disk before its report is stored, and is what the next round begins with, whether or not
the report was in time: it was trained on this device's own data, and nobody else's sum hangs on it (unlike a control
variate's, `controls`). The one before stays until then, so that a round that is done again after a power cut begins
where it began. `DIR/heads/<bundle>.run` says whose head completes the newest model of a bundle, for local inference.
A file is `partial.to_bytes`. For functions with an entry of their own, which read a whole model, `completed` keeps
`<run>.<round>.<model>.whole`: the model with the head in its place, made again when it is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.disk import sync_folder, write_whole
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from edge_runtime.optimizers import Vector
    from fedless.protocol.layout import Layout

FOLDER = "heads"
RUNS_KEPT = 4
"""The oldest runs' heads are forgotten: such a client begins from the model's own again."""
KEPT = 2
"""Of one run: the newest, and the one that it was made from."""
_HEAD_MAX = 1 << 16
WHOLES_KEPT = 2
"""Completed models: the newest, and the one that a call may be about to open."""


class Heads:
    """`DIR/heads/`, at most `limit_bytes` in all."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes

    def own(self, run_id: str, layout: Layout, before: int = 0) -> Path | None:
        """The newest head of a run (of a round under `before`, if that is not 0).

        None: the model's own elements, since this client never trained in it, or the file is damaged.
        """
        for round_id in sorted(self._rounds(run_id), reverse=True):
            if not before or round_id < before:
                file = self._file(run_id, round_id)
                return file if _described(file)[1] == layout else None
        return None

    def check_room(self, layout: Layout) -> None:
        """Before training: that a head of this size may be kept. Raises `LocalError(DISK_FULL)`."""
        needed = KEPT * (4 * layout.own + _HEAD_MAX)
        if needed > self._limit:
            raise LocalError(
                Code.DISK_FULL,
                f"Personal parameters of this task take {needed >> 20} MB; {self._limit >> 20} MB are allowed here.",
                fix="Raise heads_mb of [limits] in edge.toml, or refuse such tasks.",
            )

    def put(self, run_id: str, round_id: int, bundle: str, layout: Layout, head: Vector) -> None:
        """Keep what a round made. Raises `LocalError(DISK_FULL)`."""
        from edge_runtime import partial  # noqa: PLC0415  (numpy: most rounds keep no head)

        data = partial.to_bytes(bundle, layout, head)
        with self._explained():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(run_id, round_id, len(data))
            write_whole(self._file(run_id, round_id), data)
        self.serve(bundle, run_id)

    def serve(self, bundle: str, run_id: str) -> None:
        """The newest model of a bundle is this run's ("": of a run without personal parameters).

        Raises `LocalError(DISK_FULL)`.
        """
        pointer = self._folder / f"{bundle}.run"
        known = pointer.read_text() if pointer.is_file() else ""
        if known == run_id:
            return
        with self._explained():
            if run_id:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(pointer, run_id.encode())
            else:
                pointer.unlink(missing_ok=True)

    def served(self, bundle: str) -> tuple[Path, Layout] | None:
        """The head that belongs to the newest model of a bundle, and its layout."""
        pointer = self._folder / f"{bundle}.run"
        if not pointer.is_file():
            return None
        run_id = pointer.read_text()
        for round_id in sorted(self._rounds(run_id), reverse=True):
            file = self._file(run_id, round_id)
            of, layout = _described(file)
            return (file, layout) if layout is not None and of == bundle else None
        return None

    def completed(self, bundle: str, model: Path) -> Path | None:
        """A file of raw float32[P]: the fleet's `model` with this device's head; None where it has none for it.

        Raises `LocalError`: DISK_FULL, or STATE_CORRUPT where the model is of another size.
        """
        found = self.served(bundle)
        if found is None:
            return None
        head, layout = found
        size = 4 * layout.parameters
        if model.stat().st_size != size:
            raise LocalError(
                Code.STATE_CORRUPT, f"{model.name[:16]} is not of the model that the head completes."
            )
        whole = self._folder / f"{head.stem}.{model.name[:16]}.whole"
        if not whole.is_file():
            from edge_runtime import partial  # noqa: PLC0415  (see `put`)

            self._check_whole(size)
            data = bytearray(model.read_bytes())
            partial.put_in(data, layout, head.read_bytes())
            with self._explained():
                self._forget_wholes(WHOLES_KEPT - 1, size)
                write_whole(whole, data)
        return whole

    def _check_whole(self, size: int) -> None:
        used = sum(file.stat().st_size for file in self._folder.glob("*.head"))
        if used + size > self._limit:
            raise LocalError(
                Code.DISK_FULL,
                f"The model with this device's part takes {size / 2**20:.1f} MB beside {used / 2**20:.1f} MB of parts; "
                f"{self._limit >> 20} MB are allowed here.",
                fix="Raise heads_mb of [limits] in edge.toml.",
            )

    def _forget_wholes(self, kept: int, size: int) -> None:
        """All completed models but so many, and those that would leave no room for `size` bytes more."""
        newest_first = sorted(
            self._folder.glob("*.whole"), key=lambda file: file.stat().st_mtime, reverse=True
        )
        for at, file in enumerate(newest_first):
            if at >= kept or self._used() + size > self._limit:
                file.unlink(missing_ok=True)

    def erase(self) -> None:
        """This device is no client of the fleet any more: all of them go, and that is durable."""
        if not self._folder.is_dir():
            return
        for file in self._folder.iterdir():
            file.unlink(missing_ok=True)
        sync_folder(self._folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            detail = f"{self._folder} cannot take personal parameters: {error.strerror}."
            raise LocalError(Code.DISK_FULL, detail, fix="Free some space.") from error

    def _make_room(self, run_id: str, round_id: int, size: int) -> None:
        """Forget what the new file makes needless: older ones of its run, completed models, the oldest other runs."""
        for old in sorted(self._rounds(run_id) - {round_id})[: -(KEPT - 1)]:
            self._file(run_id, old).unlink(missing_ok=True)
        self._forget_wholes(WHOLES_KEPT, size)
        others: dict[str, float] = {}
        for file in self._folder.glob("*.head"):
            name = file.name.split(".")[0]
            if name != run_id:
                others[name] = max(others.get(name, 0.0), file.stat().st_mtime)
        oldest = sorted(others, key=lambda name: others[name])
        while oldest and (len(oldest) >= RUNS_KEPT or self._used() + size > self._limit):
            for file in self._folder.glob(f"{oldest.pop(0)}.*.head"):
                file.unlink(missing_ok=True)

    def _used(self) -> int:
        return sum(
            file.stat().st_size for kind in ("head", "whole") for file in self._folder.glob(f"*.{kind}")
        )

    def _rounds(self, run_id: str) -> set[int]:
        return {int(file.name.split(".")[1]) for file in self._folder.glob(f"{run_id}.*.head")}

    def _file(self, run_id: str, round_id: int) -> Path:
        return self._folder / f"{run_id}.{round_id}.head"


def _described(file: Path) -> tuple[str, Layout | None]:
    """A file's bundle and layout; None if it is damaged or gone."""
    from edge_runtime import partial  # noqa: PLC0415  (see `put`)

    try:
        bundle, layout, _ = partial.from_bytes(file.read_bytes())
    except (OSError, LocalError):
        return "", None
    return bundle, layout
