"""This device's control variates (SCAFFOLD): `DIR/controls/<run>.<round>.f32`, one for each run it takes part in.

A round's new variate is on the disk before its report is stored, and becomes the run's own only when the report is
known to be counted: what is not in the fleet's variate must not be in ours. Which round's file is the run's own is a
fact in the journal; naming the same one again changes nothing, so any step may be repeated after a power cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.disk import write_whole
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from edge_runtime.host import Memory
    from edge_runtime.optimizers import Vector

RUNS_KEPT = 4
"""The oldest runs' variates are forgotten: such a client begins from zeros again."""


class Controls:
    """`DIR/controls/`, and in the journal the round whose file counts for each run."""

    def __init__(self, folder: Path, journal: Memory) -> None:
        self._folder = folder
        self._journal = journal

    def own(self, run_id: str, parameters: int) -> Path | None:
        """The file of this run's variate, float32[P]; None: zeros, since it never reported or the file is damaged."""
        round_id = self._journal.fact(_fact(run_id))
        file = self._folder / f"{run_id}.{round_id}.f32"
        return file if round_id and file.is_file() and file.stat().st_size == 4 * parameters else None

    def put(self, run_id: str, round_id: int, change: Vector) -> None:
        """Store what the variate is if this round's report is counted. Raises `LocalError(DISK_FULL)`."""
        import numpy as np  # noqa: PLC0415  (most rounds keep none, and a participant starts sooner without)

        before = self.own(run_id, change.size)
        after = change if before is None else np.fromfile(before, "<f4") + change
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(
                self._folder / f"{run_id}.{round_id}.f32", np.ascontiguousarray(after, "<f4").data.cast("B")
            )
        except OSError as error:
            detail = f"{self._folder} cannot take a control variate: {error.strerror}."
            raise LocalError(Code.DISK_FULL, detail, fix="Free some space.") from error

    def settle(self, round_id: int, *, counted: bool) -> None:
        """The round's report is counted, or never will be."""
        for file in self._folder.glob(f"*.{round_id}.f32"):
            run_id = file.name.split(".")[0]
            if not counted:
                if self._journal.fact(_fact(run_id)) != round_id:
                    file.unlink(missing_ok=True)
                continue
            self._journal.set_fact(_fact(run_id), round_id)
            for other in self._folder.glob(f"{run_id}.*.f32"):
                if int(other.name.split(".")[1]) < round_id:
                    other.unlink(missing_ok=True)
            self._forget_old_runs()

    def _forget_old_runs(self) -> None:
        newest: dict[str, float] = {}
        for file in self._folder.glob("*.f32"):
            run_id = file.name.split(".")[0]
            newest[run_id] = max(newest.get(run_id, 0.0), file.stat().st_mtime)
        for run_id in sorted(newest, key=lambda name: newest[name], reverse=True)[RUNS_KEPT:]:
            for file in self._folder.glob(f"{run_id}.*.f32"):
                file.unlink(missing_ok=True)


def _fact(run_id: str) -> str:
    return f"control:{run_id}"
