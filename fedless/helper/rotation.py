"""The helper's keys, and how they follow one another: HPKE key and signing key together, in lists that it signs itself.

`begin` makes the next two keys and a list of the helper with both pairs, signed by the old signing key; from then on
the helper opens what is sealed to either. `end`, when nobody seals to the old one any more, makes a list without it,
signed by the new one, and gives the old keys up. Each step is done with `helper-lists.json`, which is replaced last; an
`end` that was interrupted is completed when the keys are next read. The fleet's operator gets that file and the public
keys; neither he nor the aggregator can make such a list. Called by the command line, `main` and `packaging`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedless.helper.config import KeySettings
from fedless.protocol.crypto import (
    KEY_BYTES,
    ed25519_from_pem,
    ed25519_pem,
    ed25519_public,
    ed25519_sign,
    x25519_public,
)
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.listing import lists_of, values_of
from fedless.protocol.succession import helper_member, sign_list
from fedless.protocol.trust import TrustKind, TrustList

LISTS = "helper-lists.json"
MEMBERS_BOTH = 2


def own_keys(keys: KeySettings) -> tuple[bytes, bytes]:
    """The HPKE key and the one that follows it (b"": none), private, 32 bytes. Raises `LocalError`."""
    _complete(keys)
    following = _next(keys.hpke)
    known = read(keys)
    rotating = following.exists() and bool(known) and len(known[-1].members) == MEMBERS_BOTH
    return _hpke(keys.hpke), _hpke(following) if rotating else b""


def read(keys: KeySettings) -> tuple[TrustList, ...]:
    """The signed lists, oldest first. Raises `LocalError` STATE_CORRUPT."""
    path = keys.hpke.with_name(LISTS)
    try:
        return lists_of(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        detail = f"{path} cannot be read ({type(error).__name__})."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore it from a back-up.") from error


def begin(keys: KeySettings, fleet: str, now_ms: int) -> TrustList:
    """Make the next keys, and the list of both. Raises `LocalError` WRONG_STATE, STATE_MISSING or STATE_CORRUPT."""
    own, following = own_keys(keys)
    if following:
        fix = "End it first: `fedless helper rotate-key end DIR`."
        raise LocalError(Code.WRONG_STATE, "The helper's keys are being replaced already.", fix=fix)
    signing = _signing(keys.signing)
    hpke, successor = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    _write(_next(keys.signing), ed25519_pem(successor))
    _write(_next(keys.signing).with_suffix(".pub"), _hex(ed25519_public(successor)))
    _write(_next(keys.hpke), _hex(hpke))
    _write(_next(keys.hpke).with_suffix(".pub"), _hex(x25519_public(hpke)))
    return _hand_on(keys, fleet, (_member(signing, own), _member(successor, hpke)), signing, now_ms)


def end(keys: KeySettings, fleet: str, now_ms: int) -> TrustList:
    """Give the old keys up for the next ones. Raises `LocalError` as `begin`; WRONG_STATE when none follow."""
    _, following = own_keys(keys)
    if not following:
        fix = "Begin with `fedless helper rotate-key begin DIR`."
        raise LocalError(Code.WRONG_STATE, "The helper's keys are not being replaced.", fix=fix)
    successor = _signing(_next(keys.signing))
    made = _hand_on(keys, fleet, (_member(successor, following),), successor, now_ms)
    _complete(keys)
    return made


def _hand_on(
    keys: KeySettings, fleet: str, members: tuple[bytes, ...], signing: bytes, now_ms: int
) -> TrustList:
    known = read(keys)
    number = max(known[-1].number + 1 if known else 1, now_ms // 1000)
    signer = next(member for member in members if member[:KEY_BYTES] == ed25519_public(signing))
    made = sign_list(
        fleet, TrustKind.HELPER, number, members, signer, lambda message: ed25519_sign(signing, message)
    )
    _write(keys.hpke.with_name(LISTS), json.dumps(values_of((*known, made)), indent=1).encode())
    return made


def _complete(keys: KeySettings) -> None:
    """Give the next keys their lasting names, if that is what is left of `end`; the HPKE key last."""
    known, path = read(keys), _next(keys.hpke)
    if not known or len(known[-1].members) == MEMBERS_BOTH or not path.exists():
        return
    digest = known[-1].members[0][KEY_BYTES:]
    if helper_member(b"", x25519_public(_hpke(path))) != digest:
        return  # of a `begin` that was interrupted
    for old in (keys.signing, keys.signing.with_suffix(".pub"), keys.hpke.with_suffix(".pub"), keys.hpke):
        if _next(old).exists():
            _next(old).replace(old)


def _member(signing: bytes, hpke: bytes) -> bytes:
    return helper_member(ed25519_public(signing), x25519_public(hpke))


def _next(path: Path) -> Path:
    return path.with_name(f"{path.stem}-next{path.suffix}")


def _hex(raw: bytes) -> bytes:
    return raw.hex().encode() + b"\n"


def _hpke(path: Path) -> bytes:
    """32 bytes, in hex."""
    try:
        raw = bytes.fromhex(read_file(path).decode().strip())
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise LocalError(Code.STATE_CORRUPT, f"Expected 32 bytes in hex in {path}.")
    return raw


def _signing(path: Path) -> bytes:
    return ed25519_from_pem(read_file(path))


def read_file(path: Path) -> bytes:
    """One of the helper's own files. Raises `LocalError` STATE_MISSING."""
    try:
        return path.read_bytes()
    except OSError as error:
        detail = f"{path}: {error.strerror}."
        raise LocalError(Code.STATE_MISSING, detail, fix="Make it with `fedless helper init`.") from error


def _write(path: Path, content: bytes) -> None:
    """Replaces a file (0600) in one step that survives a power cut."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
