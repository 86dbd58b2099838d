"""One experiment from its file to its report: a fresh local fleet for each seed, one run on it, the figures.

Called by `fedless experiment run`. A run's folder `<output>/<name>-<time>-s<seed>/` gets rounds.jsonl line by
line as rounds end, then model.f32, summary.json and report.html; logs/ has what every process said. The fleet
itself (keys, state, the devices' data) is in state/ while it runs and is removed afterwards, unless it is to
be kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aggregator import tasks
from fedless.authoring.sign import initial_weights, pack_and_sign, read_manifest
from fedless.experiments import compare, datasets, report
from fedless.experiments.books import Books
from fedless.experiments.config import Dropout, Experiment, runs, with_rounds, with_scale
from fedless.experiments.faults import Dropouts
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.groups import client_ids
from fedless.experiments.machine import machine, versions
from fedless.experiments.measures import Participation, reached, round_record, run_figures
from fedless.experiments.operator import Connect, Operator
from fedless.experiments.partition import divide_groups
from fedless.experiments.progress import Progress
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.manifest import Manifest, Model
from fedless.protocol.messages import Mode

MODEL = "model.f32"
FIGURES_S = 3.0


@dataclass(frozen=True)
class Options:
    """What the command line may change: data, rounds, folder, whether state stays behind, size, one variant only."""

    data: Path | None = None
    rounds: int = 0
    output: Path | None = None
    keep: bool = False
    scale: float = 1.0
    only: str = ""


def run_experiment(
    experiment: Experiment, connect: Connect, progress: Progress, options: Options
) -> list[Path]:
    """Run it once for each variant and seed; the folders of the runs. Raises `FedlessError` with what to do.

    More than one run ends with a page that compares them.
    """
    if options.data is not None:
        experiment = replace(experiment, data=datasets.idx_folder(experiment.data, options.data))
    if options.scale != 1.0:
        experiment = with_scale(experiment, options.scale)
    if options.rounds:
        experiment = with_rounds(experiment, options.rounds)
    output = options.output or experiment.output
    planned = runs(experiment, options.only)
    done = [_run_once(run, output, connect, progress, keep=options.keep) for run in planned]
    if len(done) > 1:
        page = output / f"{experiment.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-compare.html"
        progress.say(f"comparison: {compare.write(done, page, experiment.targets)}")
    return done


def _run_once(
    experiment: Experiment, output: Path, connect: Connect, progress: Progress, *, keep: bool
) -> Path:
    seed = experiment.seeds[0]
    books = Books.of(experiment)  # tables that cannot be read are told before anything runs
    manifest = read_manifest(experiment.function)
    devices, test_set = _prepare(experiment, seed, manifest)
    name = "-".join(filter(None, (experiment.name, experiment.variant)))
    folder = output / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-s{seed}"
    folder.mkdir(parents=True)
    progress.say(f"{folder}: {_described(experiment)}, seed {seed}; starting aggregator, broker and clients")
    state = folder / "state"
    source = manifest.data_mounts[0] if manifest.data_mounts else "default"
    try:
        with LocalFleet(
            state,
            devices,
            connect,
            source=source,
            helper=experiment.helper if tasks.parse(experiment.task).mode == Mode.HELPER else None,
            logs=folder / "logs",
        ) as fleet:
            try:
                summary, rounds = _on_fleet(experiment, manifest, fleet, test_set, folder, progress)
            except PeerError:
                fleet.children.check()  # a process that died is the better explanation
                raise
    finally:
        if not keep:
            shutil.rmtree(state, ignore_errors=True)
    _write_json(folder / report.SUMMARY, {**summary, **books.kept(rounds, summary)})
    progress.say(f"report: {report.write(folder)}")
    return folder


def _prepare(experiment: Experiment, seed: int, manifest: Manifest) -> tuple[list[Device], bytes]:
    """The devices with their parts of the data, and the test set."""
    if manifest.model is None:
        detail = f"{experiment.function} has no model, so there is nothing to train."
        raise LocalError(Code.CONFIG_INVALID, detail)
    split = datasets.load(experiment.data, seed)
    names = _names(manifest.model, split)
    counts = [group.count for group in experiment.groups]
    parts = divide_groups(experiment.partition, split.train[experiment.data.label], counts, seed)
    train, test = ({name: part[name] for name in names} for part in (split.train, split.test))
    devices = [
        Device(
            client_id,
            datasets.to_npz(datasets.take(train, part)),
            {"warm": {"memory_mb": group.warm_mb}},
            group,
        )
        for (client_id, group), part in zip(client_ids(experiment.groups), parts, strict=True)
    ]
    return devices, datasets.to_npz(test)


def _described(experiment: Experiment) -> str:
    return " + ".join(f"{group.count} {group.label}" for group in experiment.groups)


def _names(model: Model, split: datasets.Split) -> list[str]:
    """The arrays that the function needs: no others leave the file."""
    wanted = [item.name for item in model.inputs] + [item.name for item in model.labels]
    if missing := [name for name in wanted if name not in split.train or name not in split.test]:
        detail = f"The function needs the arrays {', '.join(wanted)}; the data has no {', '.join(missing)}."
        raise LocalError(Code.DATA_MISSING, detail, fix="Name the arrays as the function's manifest does.")
    return wanted


def _on_fleet(
    experiment: Experiment,
    manifest: Manifest,
    fleet: LocalFleet,
    test_set: bytes,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Start the run, follow it to its end, fetch the model; the summary and the rounds."""
    idle = list(fleet.agent_rss_mb().values())
    operator = fleet.operator()
    started = time.monotonic()
    info, rounds = train(
        fleet,
        operator,
        experiment.function,
        experiment.task,
        test_set,
        folder / report.ROUNDS,
        progress,
        dropouts=experiment.dropouts,
    )
    training_seconds = time.monotonic() - started
    if info.state != "finished":
        raise LocalError(Code.WRONG_STATE, f"The run {info.state}: {info.reason or 'no reason given'}.")
    digest = _fetch_model(operator, info.model_digest, folder / MODEL)
    parameters = manifest.model.parameters if manifest.model else 0
    summary = {
        "name": experiment.name,
        "variant": experiment.variant,
        "strategy": tasks.parse(experiment.task).strategy,
        "run_id": folder.name,
        "started_at": f"{datetime.fromtimestamp(info.started_at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC",
        "clients": experiment.clients,
        "parameters": parameters,
        "masked": all(entry["mode"] != "plain" for entry in rounds),
        "secagg_mode": rounds[-1]["mode"] if rounds else "",
        **run_figures(rounds, parameters, idle),
        **reached(rounds, experiment.targets),
        "aggregator_peak_rss_mb": round(operator.info().peak_rss_mb, 1),
        "training_seconds": round(training_seconds, 1),
        "model_sha256": digest,
        "seeds": list(experiment.seeds),
        "machine": machine(),
        "versions": versions(),
    }
    return summary, rounds


def train(
    fleet: LocalFleet,
    operator: Operator,
    function: Path,
    task: str,
    test_set: bytes,
    lines: Path,
    progress: Progress,
    *,
    dropouts: Sequence[Dropout] = (),
) -> tuple[Any, list[dict[str, Any]]]:
    """Run a task on a fleet to its end: the RunInfo, and the rounds as they were written to `lines`.

    `test_set` is an .npz file's bytes, or empty for no central evaluation. Also called by the benchmarks.
    """
    bundle = pack_and_sign(function, fleet.aggregator_folder / "publisher" / "publisher.key")
    blobs = (bundle, initial_weights(function), test_set)
    info = operator.start_run(task, *(operator.put(blob) if blob else b"" for blob in blobs))
    progress.say(f"run {info.run_id} of {info.rounds_wanted} rounds")

    def number_of(round_id: int) -> int:
        found: int = next(
            each.number for each in operator.run(info.run_id).rounds if each.round_id == round_id
        )
        return found

    faults = Dropouts(fleet, dropouts, number_of, progress.say)
    functions = [one.client_id for one in fleet.clients if one.group.functions]
    rounds = _follow(operator, info.run_id, lines, progress, faults, functions)
    return operator.run(info.run_id), rounds


def _follow(
    operator: Operator,
    run_id: str,
    path: Path,
    progress: Progress,
    faults: Dropouts,
    functions: Collection[str],
) -> list[dict[str, Any]]:
    """Watch the run until it ends; the lines of rounds.jsonl, each written when its round has ended."""
    participation = Participation(functions)
    rounds: list[dict[str, Any]] = []
    with path.open("w", encoding="utf-8") as file:

        def write(*, all_of_them: bool) -> None:
            info = operator.run(run_id)
            for ended in info.rounds[len(rounds) :]:
                # The last invocations' figures come after the round's model: it waits for the next.
                if not ended.ended_at_ms or not (all_of_them or len(info.rounds) > len(rounds) + 1):
                    break
                record = round_record(ended, participation.of(ended.round_id))
                rounds.append(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                progress.round_ended(record, info.rounds_wanted)

        last = 0
        for event in operator.watch(run_id):
            last = event.sequence
            participation.take(event)
            faults.take(event)
            if event.event == "cohort_selected":
                write(all_of_them=False)
            progress.now(f"round {len(rounds) + 1}: {participation.reports(event.round_id)} reports")
        _await_figures(operator, run_id, participation, last)
        write(all_of_them=True)
    return rounds


def _await_figures(operator: Operator, run_id: str, participation: Participation, last: int) -> None:
    """The last invocations tell their figures after the run has ended: wait for them, but not for long."""
    give_up_at = time.monotonic() + FIGURES_S
    while participation.unmeasured() and time.monotonic() < give_up_at:
        time.sleep(0.1)
        for event in operator.watch(run_id, last):
            last = event.sequence
            participation.take(event)


def _fetch_model(operator: Operator, digest: bytes, path: Path) -> str:
    """Write the blob to `path`; its SHA-256 in hex, checked."""
    seen = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in operator.fetch(digest):
            seen.update(chunk)
            file.write(chunk)
    if seen.digest() != digest:
        raise LocalError(Code.WRONG_DIGEST, f"The model in {path} is damaged.", fix="Run it again.")
    return seen.hexdigest()


def _write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
