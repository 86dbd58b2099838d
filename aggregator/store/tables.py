"""Every table of the database, whatever else is imported: a module with tables of its own is named here."""

from __future__ import annotations

from aggregator.store import (
    channels,
    fleet,
    functions,
    helper_rounds,
    masks,
    operators,
    orders,
    privacy,
    schema,
)

__all__ = [
    "channels",
    "fleet",
    "functions",
    "helper_rounds",
    "masks",
    "metadata",
    "operators",
    "orders",
    "privacy",
    "schema",
]
metadata = schema.metadata
