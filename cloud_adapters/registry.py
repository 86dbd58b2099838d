"""The adapters by platform name: the six of this package, and those that other packages bring.

Another package's entry point in the group `fedless.adapters` adds a platform: its name is the platform's, its object a
subclass of `Invoker`. An adapter, and with it its SDK, is imported when a client of that platform is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from cloud_adapters.base import Invoker
from fedless.protocol.errors import Code, LocalError, PeerError

GROUP = "fedless.adapters"
OWN = {
    "aws-lambda": ("cloud_adapters.aws_lambda", "AwsLambda", "aws"),
    "azure": ("cloud_adapters.azure", "Azure", "azure"),
    "google": ("cloud_adapters.google", "Google", "google"),
    "knative": ("cloud_adapters.knative", "Knative", "functions"),
    "openfaas": ("cloud_adapters.openfaas", "OpenFaas", "functions"),
    "openwhisk": ("cloud_adapters.openwhisk", "OpenWhisk", "functions"),
}


def platforms() -> list[str]:
    """The names of all platforms."""
    return sorted({*OWN, *(point.name for point in entry_points(group=GROUP))})


def invoker(platform: str, client_id: str, settings: Mapping[str, Any]) -> Invoker:
    """The invoker of one client. Raises `LocalError` CONFIG_INVALID, or NOT_INSTALLED without the platform's SDK."""
    return _adapter(platform)(client_id, settings)


def check_settings(platform: str, client_id: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that an invoker could not be made of. Raises `PeerError` as `invoker`."""
    try:
        invoker(platform, client_id, settings)
    except LocalError as error:
        raise PeerError(error.code, error.detail, fix=error.fix) from error


def _adapter(platform: str) -> type[Invoker]:
    if platform in OWN:
        module, name, extra = OWN[platform]
        try:
            found: type[Invoker] = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise LocalError(
                Code.NOT_INSTALLED,
                f"Platform {platform} needs {error.name}.",
                fix=f"Install fedless[{extra}].",
            ) from error
        return found
    for point in entry_points(group=GROUP, name=platform):
        loaded = point.load()
        if isinstance(loaded, type) and issubclass(loaded, Invoker):
            return loaded
        raise LocalError(Code.CONFIG_INVALID, f"The entry point {point.value} of {platform} is no Invoker.")
    raise LocalError(
        Code.CONFIG_INVALID, f"Expected one of {', '.join(platforms())}, found {platform[:40]!r}."
    )
