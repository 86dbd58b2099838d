"""The service's settings: one TOML file into frozen typed objects, read once at start.

`FEDLESS__SECTION__KEY` in the environment overrides a key. An unknown section or key, a wrong
type and a number outside its range are errors, and all of them are told at once. Relative paths
are relative to the file. deploy/samples/aggregator.toml shows every field with unit and default.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import check_id
from fedless.protocol.messages import NOISE_MAX

PREFIX = "FEDLESS__"
_PASSWORD = re.compile(r"[\w+]+://[^/@]*:[^/@]+@|[^?]+\?(?:.*&)?password=")
Port = Annotated[int, Field(ge=0, le=65535)]
Host = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])$")]
Address = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$")]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class BrokerKind(StrEnum):
    """Whose mosquitto it is."""

    CHILD = "child"
    EXTERNAL = "external"


class LogLevel(StrEnum):
    """The least urgent log line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetSettings(_Section):
    """Which fleet this is, and whose bundles its clients trust (raw Ed25519 public keys in hex)."""

    name: Name
    publisher_keys: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        default=(), max_length=16
    )

    @model_validator(mode="after")
    def _is_an_id(self) -> FleetSettings:
        try:
            check_id(self.name, "fleet name")
        except PeerError as error:
            raise ValueError(error.detail) from error
        return self


class AuthoritySettings(_Section):
    """The fleet's authority and what it hands out."""

    directory: Path = Path("authority")
    certificate_days: int = Field(90, ge=1, le=3650)
    claim_valid_hours: int = Field(24, ge=1, le=8760)


class ListenSettings(_Section):
    """Where the service listens, and under which names devices reach it. Port 0: any free one."""

    address: Host = "0.0.0.0"  # noqa: S104 - devices are elsewhere; who may call is decided by certificates
    hosts: tuple[Host, ...] = Field(min_length=1, max_length=8)
    directory: Path = Path("aggregator")
    fleet_port: Port = 7443
    enrollment_port: Port = 7444


class BrokerSettings(_Section):
    """The MQTT broker. `addresses` and `revocation_list` (an absolute path) are for an external one."""

    kind: BrokerKind = BrokerKind.CHILD
    port: Port = 8883
    directory: Path = Path("broker")
    addresses: tuple[Address, ...] = Field(default=(), max_length=8)
    max_queued_messages: int = Field(1000, ge=1, le=1_000_000)
    revocation_list: Annotated[str, Field(pattern="^(/.*)?$", max_length=4096)] = ""

    @model_validator(mode="after")
    def _external_has_an_address(self) -> BrokerSettings:
        if (self.kind is BrokerKind.EXTERNAL) != bool(self.addresses):
            message = "addresses are needed for an external broker, and only for one"
            raise ValueError(message)
        return self


class StateSettings(_Section):
    """Where the service keeps what it knows. `database`: a URL; empty: SQLite in the directory."""

    directory: Path = Path("state")
    database: str = Field("", repr=False)
    database_password_file: str = ""
    database_wait_s: int = Field(60, ge=1, le=3600)
    blobs: str = ""
    blobs_options_file: str = ""
    blobs_cache_mb: int = Field(4096, ge=16, le=10_000_000)
    keep_models: int = Field(0, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _password_has_an_account(self) -> StateSettings:
        if self.database_password_file and "@" not in self.database:
            message = "database_password_file needs a database of the form postgresql://USER@HOST/NAME"
            raise ValueError(message)
        return self

    @property
    def database_url(self) -> str:
        """The database; with its password, so never to be shown. Raises `LocalError` STATE_MISSING."""
        if not self.database:
            return f"sqlite:///{self.directory / 'fedless.db'}"
        if not self.database_password_file:
            return self.database
        try:
            password = Path(self.database_password_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            detail = f"The database's password cannot be read: {error}."
            raise LocalError(Code.STATE_MISSING, detail, fix="See state.database_password_file.") from error
        head, separator, rest = self.database.partition("://")
        account, at, place = rest.partition("@")
        return f"{head}{separator}{account.partition(':')[0]}:{quote(password, safe='')}{at}{place}"


class LimitSettings(_Section):
    """Bounds on what strangers and clients may use up."""

    enrollment_connections: int = Field(256, ge=1, le=65536)
    enrollment_connections_per_address: int = Field(64, ge=1, le=65536)
    failed_claims_per_minute: int = Field(10, ge=1, le=10_000)
    concurrent_calls: int = Field(2000, ge=10, le=1_000_000)
    progress_timeout_s: int = Field(30, ge=1, le=3600)
    stop_timeout_s: int = Field(5, ge=1, le=600)


class PolicySettings(_Section):
    """What the first enrollment writes into a device's policy where that is blank."""

    minimum_cohort: int = Field(0, ge=0, le=100_000)
    modes: tuple[Annotated[str, Field(pattern="^(plain|pairwise|helper)$")], ...] = ()
    minimum_noise: float = Field(0.0, ge=0.0, le=NOISE_MAX)


class HelperSettings(_Section):
    """The second party of helper mode. `directory` holds its cert.pem and hpke.pub.

    It is a service at `address`, or a function on `platform` with what its adapter must know in `function`; neither:
    this fleet has none.
    """

    address: Address | Literal[""] = ""
    directory: Path = Path("helper")
    platform: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] | Literal[""] = ""
    function: dict[str, Any] = {}

    @property
    def exists(self) -> bool:
        """Whether this fleet has a helper."""
        return bool(self.address or self.platform)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.address and self.platform:
            raise ValueError("a helper has an address or a platform, not both")
        return self


class WebSettings(_Section):
    """/healthz, /metrics and the dashboard. No port: none of them. On an address that is not loopback they speak TLS,
    and ask for an operator's certificate.
    """  # noqa: D205

    address: Host = "127.0.0.1"
    port: Port | None = None


class LogSettings(_Section):
    """What is logged, to standard error."""

    level: LogLevel = LogLevel.INFO


class Settings(BaseSettings):
    """All settings of one aggregator; every path in it is absolute."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    fleet: FleetSettings
    authority: AuthoritySettings = AuthoritySettings()
    listen: ListenSettings
    broker: BrokerSettings = BrokerSettings()
    state: StateSettings = StateSettings()
    limits: LimitSettings = LimitSettings()
    policy: PolicySettings = PolicySettings()
    helper: HelperSettings = HelperSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes these by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file; nothing else."""
        return env_settings, init_settings

    @property
    def database_url(self) -> str:
        """See `StateSettings`."""
        return self.state.database_url


def load(path: Path) -> Settings:
    """The settings in a file with the environment's overrides.

    Raises `LocalError` STATE_MISSING when there is no such file, else CONFIG_INVALID with every
    complaint: key, what was expected, what was found.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        detail = f"Expected a configuration at {path}, found none."
        raise LocalError(Code.STATE_MISSING, detail, fix="Make a fleet with `fedless init DIR`.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path} is not TOML: {error}.") from error
    complaints = [*_unknown_variables(os.environ), *_open_passwords(values)]
    try:
        settings = Settings(**values)
    except ValidationError as error:
        complaints += [_complaint(item) for item in error.errors(include_url=False)]
    except SettingsError as error:
        complaints.append(f"{error}: lists are written as JSON in the environment")
    if complaints:
        lines = "".join(f"\n  {line}" for line in complaints)
        fix = "\nEvery key is described in deploy/samples/aggregator.toml."
        raise LocalError(Code.CONFIG_INVALID, f"In {path}:{lines}", fix=fix)
    return _absolute(settings, path.absolute().parent)


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(environment):
        if name.upper().startswith(PREFIX):
            section = name[len(PREFIX) :].split("__")[0].lower()
            if section not in Settings.model_fields:
                yield f"{name} (environment): unknown section {section!r}{_like(section, Settings)}"


def _open_passwords(values: Mapping[str, Any]) -> Iterator[str]:
    """A password in the file would be in every back-up of it, and in every question about it."""
    state = values.get("state")
    url = state.get("database") if isinstance(state, dict) else None
    if isinstance(url, str) and _PASSWORD.match(url):
        yield "state.database: holds a password; put it into a file of its own, see state.database_password_file"


def _complaint(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, a dict
    location = [str(part) for part in error["loc"]]
    key, kind = ".".join(location), error["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_like(location[-1], _section(location[:-1]))}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error" or key == "state.database":
        return f"{key}: {expected}"
    return f"{key}: {expected}, found {str(error['input'])[:80]!r}"


def _section(location: list[str]) -> type[BaseModel]:
    field = Settings.model_fields.get(location[0]) if location else None
    kind = field.annotation if field else Settings
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else Settings


def _like(word: str, section: type[BaseModel]) -> str:
    near = difflib.get_close_matches(word, section.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(section.model_fields)}"


def _absolute(settings: Settings, base: Path) -> Settings:
    """The same settings with every path resolved against the file's folder."""
    changed = {
        name: section.model_copy(update={"directory": base / section.directory})
        for name in ("authority", "listen", "broker", "state", "helper")
        if (section := getattr(settings, name))
    }
    for name in ("database_password_file", "blobs_options_file"):
        if named := getattr(settings.state, name):
            changed["state"] = changed["state"].model_copy(update={name: str(base / named)})
    return settings.model_copy(update=changed)
