"""Bring a function onto this device by hand: verify the bundle, unpack it, make it the newest version.

Called by `fedless-edge functions install`. The same checks as for a bundle that comes with a round: the publisher's
signature, the paths, the runtime, and that no older version takes the place of one that was seen.
"""

from __future__ import annotations

from pathlib import Path

from edge_runtime import bundle
from edge_runtime.clock import unix_ms
from edge_runtime.config import FILE, load
from edge_runtime.functions import FOLDER, Functions, Installed
from edge_runtime.keystore import Keystore
from edge_runtime.starts import Starts
from fedless.protocol import bundle_format


def install(state: Path, data: bytes) -> Installed:
    """The owner: a new newest version. Raises `FedlessError` as `bundle.unpack`, and DATA_MISSING, STATE_MISSING."""
    publishers = Keystore(state).load().publishers
    digest = bundle_format.digest(data)
    functions = Functions(state)
    try:
        manifest, _ = bundle.verify(data, digest, publishers)
        newest = functions.newest_seen(manifest.name)
        unpacked = bundle.unpack(data, digest, publishers, state / FOLDER, newest)
        starts = Starts(state, functions)
        return starts.install(unpacked, starts.space(unpacked, load(state / FILE)), "", unix_ms())
    finally:
        functions.close()
