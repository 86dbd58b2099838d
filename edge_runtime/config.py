"""The device's few settings, `edge.toml`, as frozen objects.

Read by the command line, `doctor` and the participant with `load`; a file with several mistakes is refused once, with
all of them. `FEDLESS__LIMITS__THREADS=2` in the environment overrides `threads` of `[limits]`. Every field, its unit
and its default: `deploy/samples/edge.toml`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.data.source import DataSource
from edge_runtime.eligibility import Rules
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import NAME, Manifest
from fedless.protocol.tables import Table

FILE = "edge.toml"
DEFAULT_SOURCE = "default"
_SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PREFIX = "FEDLESS__"
_SECTIONS = ("limits", "agent", "update", "sandbox", "warm", "eligibility", "local", "schedule", "data")
_QUIET = re.compile(r"|(?:[01]\d|2[0-3]):[0-5]\d-(?:[01]\d|2[0-3]):[0-5]\d")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}")
_PATH = re.compile(r"[^\x00]{0,4096}")
_SANDBOX_MODE = re.compile(r"auto|required|off")
_STARTER = """\
# Settings of this device. Every field with its unit and default: deploy/samples/edge.toml of the fedless sources.
# [data.default]
# path = "examples.npz"
"""


@dataclass(frozen=True)
class Limits:
    """What this device gives: see the sample for each field."""

    memory_mb: int = 0
    total_mb: int = 0
    threads: int = 1
    cache_mb: int = 512
    outbox_mb: int = 256
    heads_mb: int = 64


@dataclass(frozen=True)
class AgentSettings:
    """How the agent idles and starts participants."""

    keepalive_s: int = 240
    reconnect_max_s: int = 300
    wakes_per_minute: int = 30
    queue: int = 8
    drain_s: int = 30


@dataclass(frozen=True)
class UpdateSettings:
    """How long an updated agent has to reach the broker before it is ended; after three such starts it is given up."""

    trial_s: int = 300


@dataclass(frozen=True)
class SandboxSettings:
    """How functions are confined: `auto` takes what this device has, `required` refuses less than the whole, `off`."""

    mode: str = "auto"
    scratch_mb: int = 16


@dataclass(frozen=True)
class WarmSettings:
    """For how long, and in how much memory, participant and fork server stay for the next wake-up; 0 MB: never."""

    memory_mb: int = 0
    keep_s: int = 60


@dataclass(frozen=True)
class EligibilitySettings:
    """When this device trains. `metered` is the owner's word on the link; `trace` replaces the device's sensors."""

    rules: Rules = field(default_factory=Rules)
    metered: bool = False
    trace: str = ""


@dataclass(frozen=True)
class LocalSettings:
    """Invocations by this device's own programs, on the Unix socket `socket` (empty: none)."""

    socket: str = ""
    users: tuple[str, ...] = ()
    per_minute: int = 60
    concurrency: int = 1
    queue: int = 8
    wait_s: int = 30


@dataclass(frozen=True)
class Scheduled:
    """`[schedule.NAME]`: a function that is called every so often with the same event."""

    function: str
    every_s: int
    event: object = None


@dataclass(frozen=True)
class EdgeConfig:
    """The whole file. `data` has the sources by name, with absolute paths."""

    limits: Limits = field(default_factory=Limits)
    agent: AgentSettings = field(default_factory=AgentSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    warm: WarmSettings = field(default_factory=WarmSettings)
    eligibility: EligibilitySettings = field(default_factory=EligibilitySettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    schedule: Mapping[str, Scheduled] = field(default_factory=dict)
    data: Mapping[str, DataSource] = field(default_factory=dict)

    def source(self, mounts: tuple[str, ...]) -> DataSource:
        """The participant: the source that a bundle asks for by name, else the only one, else `default`.

        Raises `LocalError(DATA_MISSING)`.
        """
        names = mounts or (tuple(self.data) if len(self.data) == 1 else (DEFAULT_SOURCE,))
        found = self.data.get(names[0])
        if found is None:
            known = ", ".join(sorted(self.data)) or "none"
            raise LocalError(
                Code.DATA_MISSING,
                f"Expected a data source named {names[0]!r}; this device has: {known}.",
                fix=f"Describe it as [data.{names[0]}] in {FILE}.",
            )
        return found

    def sources(self, manifest: Manifest) -> dict[str, DataSource]:
        """All sources that a function may read: the declared ones; for a model's training also the default.

        Raises `LocalError(DATA_MISSING)`.
        """
        if not manifest.data_mounts:
            return {} if manifest.model is None else {DEFAULT_SOURCE: self.source(())}
        return {name: self.source((name,)) for name in manifest.data_mounts}

    def memory_mb(self, manifest: Manifest) -> int:
        """What one instance of a function may take here, MB: what it asks for, or what this device gives at most."""
        most = self.limits.memory_mb
        return min(most, manifest.memory_mb) if most else manifest.memory_mb


def load(path: Path, environ: Mapping[str, str] | None = None) -> EdgeConfig:
    """The settings in the file, or the defaults if there is no file. Raises `LocalError(CONFIG_INVALID)`."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        values = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path}: {error}.") from error
    complaints: list[str] = []
    _override(values, os.environ if environ is None else environ, complaints)
    sources, schedule = values.pop("data", {}), values.pop("schedule", {})
    root = Table.root(values)
    config = EdgeConfig(
        _limits(root), _agent(root), _update(root), _sandbox(root), _warm(root),
        _eligibility(root, path.parent), _local(root, path.parent), _schedule(schedule, complaints),
        _sources(sources, path.resolve().parent, complaints),
    )  # fmt: skip
    complaints = root.close() + complaints
    if complaints:
        raise LocalError(Code.CONFIG_INVALID, f"{path}: " + "; ".join(complaints) + ".")
    return config


def starter() -> str:
    """What `fedless-edge enroll` writes where there is no file yet."""
    return _STARTER


def _limits(root: Table) -> Limits:
    table = root.optional("limits") or Table.root({})
    return Limits(
        memory_mb=table.integer("memory_mb", 0, 1 << 20, Limits.memory_mb),
        total_mb=table.integer("total_mb", 0, 1 << 20, Limits.total_mb),
        threads=table.integer("threads", 1, 64, Limits.threads),
        cache_mb=table.integer("cache_mb", 16, 1 << 20, Limits.cache_mb),
        outbox_mb=table.integer("outbox_mb", 1, 1 << 20, Limits.outbox_mb),
        heads_mb=table.integer("heads_mb", 0, 1 << 20, Limits.heads_mb),
    )


def _agent(root: Table) -> AgentSettings:
    table = root.optional("agent") or Table.root({})
    return AgentSettings(
        keepalive_s=table.integer("keepalive_s", 240, 3600, AgentSettings.keepalive_s),
        reconnect_max_s=table.integer("reconnect_max_s", 1, 3600, AgentSettings.reconnect_max_s),
        wakes_per_minute=table.integer("wakes_per_minute", 1, 6000, AgentSettings.wakes_per_minute),
        queue=table.integer("queue", 1, 64, AgentSettings.queue),
        drain_s=table.integer("drain_s", 0, 3600, AgentSettings.drain_s),
    )


def _update(root: Table) -> UpdateSettings:
    table = root.optional("update") or Table.root({})
    return UpdateSettings(trial_s=table.integer("trial_s", 1, 86_400, UpdateSettings.trial_s))


def _sandbox(root: Table) -> SandboxSettings:
    table = root.optional("sandbox") or Table.root({})
    return SandboxSettings(
        mode=table.text("mode", _SANDBOX_MODE, SandboxSettings.mode),
        scratch_mb=table.integer("scratch_mb", 1, 4096, SandboxSettings.scratch_mb),
    )


def _warm(root: Table) -> WarmSettings:
    table = root.optional("warm") or Table.root({})
    return WarmSettings(
        memory_mb=table.integer("memory_mb", 0, 1 << 20, WarmSettings.memory_mb),
        keep_s=table.integer("keep_s", 1, 86_400, WarmSettings.keep_s),
    )


def _eligibility(root: Table, folder: Path) -> EligibilitySettings:
    table = root.optional("eligibility") or Table.root({})
    quiet, trace = table.text("quiet", _QUIET, ""), table.text("trace", _PATH, "")
    rules = Rules(
        mains_only=table.flag("mains_only", default=Rules.mains_only),
        min_battery=table.real("min_battery", 0.0, 1.0, Rules.min_battery),
        max_temperature_c=table.real("max_temperature_c", 0.0, 200.0, Rules.max_temperature_c),
        max_load=table.real("max_load", 0.0, 1000.0, Rules.max_load),
        min_free_mb=table.integer("min_free_mb", 0, 1 << 20, Rules.min_free_mb),
        metered_mb_per_day=table.integer("metered_mb_per_day", 0, 1 << 20, Rules.metered_mb_per_day),
        min_link_mbit=table.real("min_link_mbit", 0.0, 1e6, Rules.min_link_mbit),
        quiet=_minutes(quiet) if quiet else None,
    )
    metered = table.flag("metered", default=EligibilitySettings.metered)
    return EligibilitySettings(rules, metered, str((folder / trace).absolute()) if trace else "")


def _minutes(text: str) -> tuple[int, int]:
    """`22:00-06:00` in minutes of the day."""
    begin, end = ((int(part[:2]), int(part[3:])) for part in text.split("-"))
    return begin[0] * 60 + begin[1], end[0] * 60 + end[1]


def _local(root: Table, folder: Path) -> LocalSettings:
    table = root.optional("local") or Table.root({})
    socket = table.text("socket", _PATH, "")
    return LocalSettings(
        socket=str((folder / socket).absolute()) if socket else "",
        users=table.texts("users", _USER, 64),
        per_minute=table.integer("per_minute", 1, 100_000, LocalSettings.per_minute),
        concurrency=table.integer("concurrency", 1, 16, LocalSettings.concurrency),
        queue=table.integer("queue", 0, 1024, LocalSettings.queue),
        wait_s=table.integer("wait_s", 1, 3600, LocalSettings.wait_s),
    )


def _schedule(values: object, complaints: list[str]) -> dict[str, Scheduled]:
    if not isinstance(values, dict):
        complaints.append("schedule: must be a table of tables, [schedule.NAME]")
        return {}
    found: dict[str, Scheduled] = {}
    for name, entry in values.items():
        if not isinstance(entry, dict) or not _SOURCE_NAME.fullmatch(name):
            complaints.append(f"schedule.{name}: must be a table, [schedule.NAME], NAME of a-z, 0-9 and '-'")
            continue
        event = entry.pop("event", None)
        root = Table.root({name: entry})
        table = root.table(name)
        function, every_s = table.text("function", NAME), table.integer("every_s", 1, 31_536_000)
        complaints.extend(f"schedule.{complaint}" for complaint in root.close())
        found[name] = Scheduled(function, every_s, event)
    return found


def _sources(values: object, folder: Path, complaints: list[str]) -> dict[str, DataSource]:
    if not isinstance(values, dict):
        complaints.append("data: must be a table of tables, [data.NAME]")
        return {}
    sources: dict[str, DataSource] = {}
    for name, table in values.items():
        if not isinstance(table, dict) or not _SOURCE_NAME.fullmatch(name):
            complaints.append(f"data.{name}: must be a table, [data.NAME], NAME of a-z, 0-9 and '-'")
            continue
        try:
            source = DataSource.parse(table)
        except LocalError as error:
            complaints.append(f"data.{name}: {error.detail.removeprefix('[data]: ').rstrip('.')}")
            continue
        path = str((folder / source.path).absolute())
        sources[name] = DataSource(source.kind, path, source.columns, source.classes, source.options)
    return sources


def _override(values: dict[str, object], environ: Mapping[str, str], complaints: list[str]) -> None:
    """Put `FEDLESS__SECTION__KEY` into the tables before they are checked. Other programs' sections are left alone."""
    for name in sorted(environ):
        if not name.startswith(_PREFIX):
            continue
        section, *keys = name[len(_PREFIX) :].lower().split("__")
        if section not in _SECTIONS or not keys:
            continue
        table = values.setdefault(section, {})
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else table
        if isinstance(table, dict):
            table[keys[-1]] = _plain(environ[name])
        else:
            complaints.append(f"{name}: {section} is not a table")


def _plain(text: str) -> object:
    """A TOML value if it is one, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
