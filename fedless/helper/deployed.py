"""What a helper that is a function is deployed with: public settings in its package, keys from the platform's secret.

The console writes both (`fedless helper package`, `fedless helper secret`); `function` reads them in the platform. The
variable `FEDLESS_HELPER_KEYS` holds the secret's text, or the path of the file that the platform mounts it as. The keys
are in no package, and no error repeats what was read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedless.helper.closing import Demands
from fedless.protocol.crypto import KEY_BYTES, P256Private, p256_from_pem
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import check_id
from fedless.protocol.secagg.helper import HelperRules

DEPLOYMENT = "fedless-helper.json"
DEPLOYMENT_VARIABLE = "FEDLESS_HELPER_DEPLOYMENT"
"""The file's path, or its text; without it the file lies beside the packages."""
KEYS_VARIABLE = "FEDLESS_HELPER_KEYS"


@dataclass(frozen=True)
class HelperDeployment:
    """Nothing in it is secret. `memory`: the URL of PostgreSQL, or of a folder of an object store."""

    fleet: str
    authority_pem: str
    memory: str
    demands: Demands = field(default_factory=Demands)
    denied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """The helper's private keys: of its certificate (P-256), and the HPKE key that seeds are sealed to.

    `next_hpke`: the HPKE key that follows it, while one does; else empty. `database_password`: of a memory in
    PostgreSQL; empty: none, or libpq finds it.
    """

    certificate_key: P256Private = field(repr=False)
    hpke: bytes = field(repr=False)
    database_password: str = field(default="", repr=False)
    next_hpke: bytes = field(default=b"", repr=False)


def deployment_to_json(deployment: HelperDeployment) -> str:
    """Console: the deployment as a file's text."""
    demands = deployment.demands
    values = {
        "fleet": deployment.fleet,
        "authority_pem": deployment.authority_pem,
        "memory": deployment.memory,
        "rules": {
            "minimum": demands.rules.minimum,
            "count_functions": demands.rules.count_functions,
            "minimum_noise": demands.rules.minimum_noise,
            "reports_max": demands.reports_max,
            "words_max": demands.words_max,
        },
        "denied": list(deployment.denied),
    }
    return json.dumps(values, indent=1)


def deployment_from_json(text: str) -> HelperDeployment:
    """Function: what it is deployed with. Raises `LocalError(CONFIG_INVALID)`."""
    try:
        values = json.loads(text)
        return HelperDeployment(
            fleet=check_id(values["fleet"], "fleet name"),
            authority_pem=str(values["authority_pem"]),
            memory=str(values["memory"]),
            demands=_demands(values["rules"]),
            denied=tuple(str(name) for name in values["denied"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, PeerError) as error:
        raise LocalError(
            Code.CONFIG_INVALID, f"The deployment of this helper cannot be read ({type(error).__name__}).",
            fix="Package it again with `fedless helper package`.",
        ) from error  # fmt: skip


def _demands(values: Mapping[str, Any]) -> Demands:
    rules = HelperRules(
        int(values["minimum"]), bool(values["count_functions"]), float(values["minimum_noise"])
    )
    return Demands(rules, int(values["reports_max"]), int(values["words_max"]))


def keys_to_json(
    certificate_key_pem: str, hpke_hex: str, database_password: str = "", next_hpke_hex: str = ""
) -> str:
    """Console: the text of the platform's secret."""
    optional = {"database_password": database_password, "next_hpke": next_hpke_hex}
    values = {"key": certificate_key_pem, "hpke": hpke_hex}
    return json.dumps(values | {name: value for name, value in optional.items() if value})


def keys_from_json(text: str) -> Keys:
    """Function: the keys. Raises `LocalError(STATE_CORRUPT)`, which repeats nothing of them."""
    try:
        values = json.loads(text)
        key, hpke = p256_from_pem(values["key"].encode("ascii")), bytes.fromhex(values["hpke"])
        following = bytes.fromhex(values.get("next_hpke", ""))
        if len(hpke) == KEY_BYTES and len(following) in {0, KEY_BYTES}:
            return Keys(key, hpke, str(values.get("database_password", "")), following)
    except (KeyError, TypeError, ValueError, AttributeError, LocalError, PeerError):
        pass
    raise LocalError(
        Code.STATE_CORRUPT, f"{KEYS_VARIABLE} does not hold a helper's keys.",
        fix="Give the platform's secret the text that `fedless helper secret` wrote.",
    )  # fmt: skip


def read_deployment() -> HelperDeployment:
    """Function: its own deployment. Raises `LocalError` STATE_MISSING or CONFIG_INVALID."""
    beside = Path(__file__).parents[2] / DEPLOYMENT
    given = os.environ.get(DEPLOYMENT_VARIABLE) or str(beside)
    return deployment_from_json(
        _text_or_file(given, DEPLOYMENT_VARIABLE, "Package it with `fedless helper package`.")
    )


def read_keys() -> Keys:
    """Function: its own keys. Raises `LocalError` STATE_MISSING or STATE_CORRUPT."""
    fix = f"Set {KEYS_VARIABLE} to the secret, or to the file that it is mounted as (docs/helper.md)."
    given = os.environ.get(KEYS_VARIABLE, "")
    if not given:
        raise LocalError(Code.STATE_MISSING, f"{KEYS_VARIABLE} is not set.", fix=fix)
    return keys_from_json(_text_or_file(given, KEYS_VARIABLE, fix))


def _text_or_file(given: str, variable: str, fix: str) -> str:
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        detail = f"{variable} names no file that can be read ({type(error).__name__})."
        raise LocalError(Code.STATE_MISSING, detail, fix=fix) from None
