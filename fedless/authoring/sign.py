"""A function directory becomes a signed bundle.

Works without tensorflow: whoever signs need not be who builds.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedless.protocol import bundle_format
from fedless.protocol.crypto import ed25519_from_pem
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import GRAPH_FILE, INITIAL_FILE, MANIFEST_FILE, Manifest, parse_bytes

_RAW_KEY_BYTES = 32


def pack_and_sign(function_dir: Path, private_key_file: Path) -> bytes:
    """The publisher: the bundle of `function_dir`, signed with the Ed25519 key in `private_key_file`.

    The key is PEM (PKCS#8, unencrypted) or 32 raw bytes. Packed are `function.toml`, `model.tflite` and the
    Python files, folders included; nothing else, and no symbolic links. Raises `LocalError(STATE_MISSING)`
    for a directory that is no function, `LocalError(CONFIG_INVALID)` for a key that cannot be read,
    `PeerError` (MANIFEST_INVALID, BUNDLE_*) for content that no client would take.
    """
    files = function_files(function_dir)
    return bundle_format.pack(files, read_private_key(private_key_file))


def read_manifest(function_dir: Path) -> Manifest:
    """The manifest of a directory. Raises `LocalError(STATE_MISSING)`, `PeerError(MANIFEST_INVALID)`."""
    path = function_dir / MANIFEST_FILE
    if not path.is_file():
        raise LocalError(
            Code.STATE_MISSING,
            f"{function_dir} has no {MANIFEST_FILE}.",
            fix="Build the function first: fedless function build.",
        )
    return parse_bytes(path.read_bytes())


def function_files(function_dir: Path) -> dict[str, bytes]:
    """What goes into the bundle, by name. Errors as `pack_and_sign`."""
    manifest = read_manifest(function_dir)
    files = {MANIFEST_FILE: (function_dir / MANIFEST_FILE).read_bytes()}
    if manifest.model is not None:
        graph = function_dir / GRAPH_FILE
        if not graph.is_file():
            raise LocalError(
                Code.STATE_MISSING, f"{function_dir} has no {GRAPH_FILE}.", fix="Build it again."
            )
        files[GRAPH_FILE] = graph.read_bytes()
    for folder, folders, names in os.walk(function_dir):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in names:
            path = Path(folder) / name
            if name.endswith(".py") and not name.startswith(".") and not path.is_symlink():
                files[path.relative_to(function_dir).as_posix()] = path.read_bytes()
    return files


def initial_weights(function_dir: Path) -> bytes:
    """Raw little-endian float32[P], the first model. Raises `LocalError(STATE_MISSING | STATE_CORRUPT)`."""
    manifest = read_manifest(function_dir)
    path = function_dir / INITIAL_FILE
    if manifest.model is None or not path.is_file():
        raise LocalError(Code.STATE_MISSING, f"{function_dir} has no {INITIAL_FILE}.")
    data = path.read_bytes()
    if bundle_format.digest(data) != manifest.model.initial_sha256:
        raise LocalError(
            Code.STATE_CORRUPT, f"{path} does not have the digest in {MANIFEST_FILE}.", fix="Build it again."
        )
    return data


def read_private_key(path: Path) -> bytes:
    """The raw 32-byte Ed25519 key in `path`. Raises `LocalError(CONFIG_INVALID | STATE_MISSING)`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LocalError(
            Code.STATE_MISSING, f"There is no key {path}.", fix="Name the publisher's private key."
        ) from None
    if len(data) == _RAW_KEY_BYTES:
        return data
    try:
        return ed25519_from_pem(data)
    except LocalError:
        raise LocalError(
            Code.CONFIG_INVALID, f"{path} is not an unencrypted Ed25519 private key (PEM, or 32 raw bytes)."
        ) from None
