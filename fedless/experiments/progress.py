"""What a person sees while an experiment runs: a moving bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Lines for what is done, and on a terminal a bar of rounds. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away; the lines stay."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

    def now(self, what: str) -> None:
        """What is going on: beside the bar on a terminal, nowhere else."""
        self._bar.update(self._task, description=what)

    def rounds(self, done: int, wanted: int) -> None:
        """How far the run is."""
        self._bar.update(self._task, completed=done, total=wanted)

    def round_ended(self, record: Mapping[str, Any], wanted: int) -> None:
        """One line for a round, from its line of rounds.jsonl."""
        metrics, number = record["metrics"], record["number"]
        parts = [f"round {number}/{wanted}", f"{record['reported']}/{record['selected']} reports"]
        parts += [
            f"{name.replace('_', ' ')} {metrics[name]:.4f}"
            for name in ("test_accuracy", "test_loss", "train_loss")
            if name in metrics
        ]
        parts.append(f"{record['seconds']:.1f} s")
        if record["state"] != "committed":
            parts.append(f"{record['state']}: {record['reason']}")
        self.say("  ".join(parts))
        self.rounds(number, wanted)
