"""The helper's settings: one TOML file into frozen typed objects, read once at start.

`FEDLESS_HELPER__SECTION__KEY` in the environment overrides a key. An unknown key, a wrong type and a number
outside its range are errors, all told at once. Relative paths are relative to the file.
deploy/samples/helper.toml shows every field with unit and default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from fedless.helper.closing import Demands
from fedless.helper.opening import SCHEMES
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.helper import HelperRules

Host = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetSettings(_Section):
    """Whose helper this is: the fleet's name and its authority's certificate (PEM)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
    authority: Path = Path("authority.pem")
    denied: Path | None = None


class ListenSettings(_Section):
    """Where the helper listens. Port 0: any free one."""

    address: Host = "0.0.0.0"  # noqa: S104 - the aggregator is elsewhere; who may call is decided by certificates
    port: Annotated[int, Field(ge=0, le=65535)] = 7445


class KeySettings(_Section):
    """Files of mode 0600, made by `fedless helper init`."""

    certificate: Path = Path("cert.pem")
    key: Path = Path("cert.key")
    hpke: Path = Path("hpke.key")
    signing: Path = Path("signing.key")


class StateSettings(_Section):
    """Where the helper remembers what it closed. Losing it means losing the protection against repeats.

    `url` empty: in `directory`; else in PostgreSQL or an object store, which instances of a function share.
    """

    directory: Path = Path("state")
    url: Annotated[str, Field(pattern=rf"^({'|'.join(SCHEMES)})://[^\s]{{1,1000}}$")] | Literal[""] = ""


class RuleSettings(_Section):
    """What the helper demands of a set, whatever the aggregator says."""

    minimum: int = Field(8, ge=2, le=100_000)
    count_functions: bool = False
    minimum_noise: float = Field(0.0, ge=0.0, le=1e6)
    reports_max: int = Field(10_000, ge=2, le=1_000_000)
    words_max: int = Field(100_000_000, ge=1, le=2**31)

    @property
    def demands(self) -> Demands:
        """As what decides wants them."""
        rules = HelperRules(self.minimum, self.count_functions, self.minimum_noise)
        return Demands(rules, self.reports_max, self.words_max)


class Settings(BaseSettings):
    """All settings of one helper."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="FEDLESS_HELPER__",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    fleet: FleetSettings
    listen: ListenSettings = ListenSettings()
    keys: KeySettings = KeySettings()
    state: StateSettings = StateSettings()
    rules: RuleSettings = RuleSettings()

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


def load(path: Path) -> Settings:
    """The settings in a file with the environment's overrides; every path in it is absolute.

    Raises `LocalError` STATE_MISSING when there is no such file, else CONFIG_INVALID with every complaint.
    """
    try:
        settings = Settings(**tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        detail = f"Expected a configuration at {path}, found none."
        raise LocalError(Code.STATE_MISSING, detail, fix="Make one with `fedless helper init`.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, SettingsError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path}: {error}.") from error
    except ValidationError as error:
        complaints = [
            f"\n  {'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        ]
        fix = "\nEvery key is described in deploy/samples/helper.toml."
        raise LocalError(Code.CONFIG_INVALID, f"In {path}:{''.join(complaints)}", fix=fix) from error
    return _absolute(settings, path.absolute().parent)


def _absolute(settings: Settings, base: Path) -> Settings:
    keys = {name: base / value for name, value in settings.keys.model_dump().items()}
    fleet: dict[str, Path] = {"authority": base / settings.fleet.authority}
    if settings.fleet.denied is not None:
        fleet["denied"] = base / settings.fleet.denied
    changed = {
        "fleet": settings.fleet.model_copy(update=fleet),
        "keys": settings.keys.model_copy(update=keys),
        "state": settings.state.model_copy(update={"directory": base / settings.state.directory}),
    }
    return settings.model_copy(update=changed)
