"""What the fleet's folder says of the helper's keys: what devices pin, and the helper's own lists, handed out as is.

`hpke.pub` is the key that rounds are opened for, `signing.pub` (optional) the one that may name its successor,
`helper-lists.json` what it has named; all three come from the helper's operator. The aggregator checks that they fit
and signs nothing of it. Called by `enrollment` for what clients are told.
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.config import HelperSettings
from aggregator.keyring import read_lists
from aggregator.link import FIX, read_helper_key, read_key
from fedless.protocol.crypto import key_id, sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.succession import follow, helper_member
from fedless.protocol.trust import TrustKind, TrustList

LISTS, SIGNING = "helper-lists.json", "signing.pub"


@dataclass(frozen=True)
class HelperKeys:
    """`digest`: SHA-256 of the HPKE key in use; `signing_key`: Ed25519, or b"". Empty where there is no helper."""

    digest: bytes = b""
    signing_key: bytes = b""
    lists: tuple[TrustList, ...] = ()


def read_helper_keys(settings: HelperSettings, fleet: str) -> HelperKeys:
    """Those in the folder. Raises `LocalError` STATE_MISSING, STATE_CORRUPT, or CONFIG_INVALID if they do not fit."""
    if not settings.exists:
        return HelperKeys()
    key = read_helper_key(settings)
    path = settings.directory / SIGNING
    signing = read_key(path) if path.exists() else b""
    lists = read_lists(settings.directory / LISTS)
    _check(lists, helper_member(signing, key), fleet)
    return HelperKeys(sha256(key), signing, lists)


def _check(lists: tuple[TrustList, ...], current: bytes, fleet: str) -> None:
    """That each list was signed by a helper of the one before, and the newest has the one in use."""
    if not lists:
        return
    signer = [each for each in lists[0].members if key_id(each) == lists[0].signed_by]
    try:
        members, _ = follow(fleet, TrustKind.HELPER, signer, 0, lists)
    except PeerError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{LISTS}: {error.detail}", fix=FIX) from error
    if current not in members:
        detail = f"The newest list in {LISTS} does not name the helper of hpke.pub and {SIGNING}."
        raise LocalError(Code.CONFIG_INVALID, detail, fix=FIX)
