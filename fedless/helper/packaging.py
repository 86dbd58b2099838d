"""The helper's package for one platform, from its directory: code, pinned wheels and the public part of its settings.

Called by `fedless helper package`; `cloud_adapters.packaging` does the work. No key is in it: the platform's secret is
the text that `secret_text` makes, and the function reads it from a variable.
"""

from __future__ import annotations

import json
from pathlib import Path

from cloud_adapters.packaging import Contents, lock
from fedless.helper.closing import read_denied
from fedless.helper.config import Settings
from fedless.helper.deployed import (
    DEPLOYMENT,
    KEYS_VARIABLE,
    HelperDeployment,
    deployment_to_json,
    keys_from_json,
    keys_to_json,
)
from fedless.helper.rotation import own_keys
from fedless.protocol.errors import Code, LocalError

_CODE = (
    "fedless/__init__.py", "fedless/protocol", "fedless/helper", "edge_runtime/__init__.py", "edge_runtime/log.py",
    "cloud_adapters/__init__.py", "cloud_adapters/handlers/__init__.py", "cloud_adapters/handlers/invoked.py",
    "cloud_adapters/handlers/listening.py",
)  # fmt: skip


def contents(settings: Settings) -> Contents:
    """What is packaged. Raises `LocalError` CONFIG_INVALID without `state.url`, STATE_MISSING."""
    if not settings.state.url:
        raise LocalError(
            Code.CONFIG_INVALID, "A helper that is a function needs a memory that its instances share.",
            fix='Set url under [state] to "postgresql://..." or to a folder of an object store, as "s3://BUCKET/FOLDER".',
        )  # fmt: skip
    denied = settings.fleet.denied
    deployment = HelperDeployment(
        fleet=settings.fleet.name,
        authority_pem=_text(settings.fleet.authority),
        memory=settings.state.url,
        demands=settings.rules.demands,
        denied=() if denied is None else tuple(sorted(read_denied(_text(denied)))),
    )
    entries = Path(__file__).parent / "entries"
    database = settings.state.url.startswith("postgresql://")
    return Contents(
        text=deployment_to_json(deployment),
        file=DEPLOYMENT,
        name=f"fedless-helper-{settings.fleet.name}",
        code=_CODE,
        locks=(entries / "requirements.txt", entries / "postgresql.txt" if database else lock("objects.txt")),
        entries="fedless.helper.entries",
        called=("helper",),
        secret=KEYS_VARIABLE,
    )


def secret_text(settings: Settings, target: str, database_password: str = "") -> str:
    """The text of the platform's secret; for Lambda and OpenWhisk in the form of their files of variables.

    Raises `LocalError` STATE_MISSING or STATE_CORRUPT.
    """
    hpke, following = own_keys(settings.keys)
    text = keys_to_json(_text(settings.keys.key), hpke.hex(), database_password, following.hex())
    keys_from_json(text)
    if target == "aws-lambda":
        return json.dumps({"Variables": {KEYS_VARIABLE: text}})
    return json.dumps({KEYS_VARIABLE: text}) if target == "openwhisk" else text


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        detail = f"{path} cannot be read ({type(error).__name__})."
        raise LocalError(Code.STATE_MISSING, detail, fix="Make it with `fedless helper init`.") from None
