"""Where a run's figures go beside the terminal: TensorBoard and MLflow here, traces over OTLP in `traces`.

All of it on the workstation that watches, made of what the aggregator tells anyway (`fedless run watch RUN`): it costs
the aggregator and the devices nothing, and can be had of a run that has long ended. Each takes an extra of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

from fedless.console.link import RoundInfo, RunEvent, RunInfo
from fedless.protocol.errors import Code, LocalError


class Sink(Protocol):
    """Hears each event once, in order, then each round once when it has ended; `close` at the end."""

    @property
    def waits(self) -> bool:
        """Whether a device has yet to tell something that belongs to what has ended."""
        ...

    def heard(self, event: RunEvent) -> None:
        """An event of the run."""
        ...

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """A training round with all its figures."""
        ...

    def close(self, run: RunInfo) -> None:
        """There is no more."""
        ...


def needs(module: str, extra: str) -> None:
    """Raises `LocalError(NOT_INSTALLED)` if an extra is absent."""
    if importlib.util.find_spec(module) is None:
        raise LocalError(Code.NOT_INSTALLED, f"This takes {module}.", fix=f"Install fedless[{extra}].")


class TensorBoard:
    """Event files in `folder`/RUN: metrics, times of phases, bytes and reports by round."""

    waits = False

    def __init__(self, folder: Path, run_id: str) -> None:
        needs("tensorboardX", "tensorboard")
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / run_id))

    def heard(self, event: RunEvent) -> None:
        """Nothing: a round's figures say it all."""

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """One point in each curve."""
        del run
        at_s = round_.ended_at_ms / 1000
        for name, value in figures(round_).items():
            self._writer.add_scalar(name, value, round_.number, walltime=at_s)

    def close(self, run: RunInfo) -> None:
        """Writes the rest."""
        del run
        self._writer.close()


class MLflow:
    """A run of MLflow in the tracking store at `uri`, a folder or an address; its experiment is the task."""

    waits = False

    def __init__(self, uri: str, run: RunInfo) -> None:
        needs("mlflow", "mlflow")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(run.task_name)
        experiment = known.experiment_id if known else self._client.create_experiment(run.task_name)
        tags = {"mlflow.runName": run.run_id, "fedless.run": run.run_id}
        begun = self._client.create_run(experiment, start_time=run.started_at_ms, tags=tags)
        self._id: str = begun.info.run_id
        self._client.log_param(self._id, "rounds_wanted", run.rounds_wanted)

    def heard(self, event: RunEvent) -> None:
        """Nothing: a round's figures say it all."""

    def ended(self, run: RunInfo, round_: RoundInfo) -> None:
        """One point of each metric."""
        del run
        for name, value in figures(round_).items():
            self._client.log_metric(self._id, name, value, timestamp=round_.ended_at_ms, step=round_.number)

    def close(self, run: RunInfo) -> None:
        """Says how the run ended."""
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(run.state, "KILLED")
        self._client.set_tag(self._id, "fedless.reason", run.reason)
        self._client.set_terminated(self._id, status, run.ended_at_ms or None)


def figures(round_: RoundInfo) -> dict[str, float]:
    """Everything that a round has a number for, by a name with its unit."""
    found = {f"metrics/{name}": value for name, value in round_.metrics.items()}
    found |= {f"phases_ms/{name}": value for name, value in round_.phases_ms.items()}
    found |= {f"lost/{name}": float(count) for name, count in round_.losses.items()}
    return found | {
        "round/reports": float(round_.reported),
        "round/seconds": (round_.ended_at_ms - round_.opened_at_ms) / 1000,
        "round/bytes_down": float(round_.bytes_down),
        "round/bytes_up": float(round_.bytes_up),
    }
