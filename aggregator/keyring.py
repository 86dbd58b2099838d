"""The keys that sign wake-ups and bundles, and how one follows another: the signed lists beside them.

A rotation has two steps. `begin` makes the next key and a list of old and new, signed by the old one, which goes on
signing; `end`, when the clients have followed, makes a list without the old one, signed by the new one, which takes its
place. Each step is done with the one file that is replaced last, so a crash leaves the one before or the one after.
Called by the command line; the service takes lists and keys up while it runs (`reload`); Enroll and Renew hand the
lists out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.founding import KEY_BYTES, write_private
from fedless.protocol.crypto import ed25519_from_pem, ed25519_pem, ed25519_public, ed25519_sign, key_id
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.listing import lists_of, values_of
from fedless.protocol.succession import sign_list
from fedless.protocol.trust import MEMBERS_MAX, TrustKind, TrustList


@dataclass(frozen=True)
class Keyring:
    """The keys of one kind: `key` signs, `lists` is the file of signed lists.

    `first` are the public keys that clients were given before there was any list; None: that of `key`.
    """

    fleet: str
    kind: TrustKind
    key: Path
    lists: Path
    first: tuple[bytes, ...] | None = None

    @property
    def following(self) -> Path:
        """Where the next key waits while a rotation goes on."""
        return self.key.with_name(f"{self.key.stem}-next.key")

    def read(self) -> tuple[TrustList, ...]:
        """The signed lists, oldest first. Raises `LocalError` STATE_CORRUPT."""
        return read_lists(self.lists)

    def members(self) -> tuple[bytes, ...]:
        """Whom clients are told to trust (raw public keys)."""
        known = self.read()
        if known:
            return known[-1].members
        return (ed25519_public(self.secret()),) if self.first is None else self.first

    def secret(self) -> bytes:
        """The key that signs (32 raw bytes), after an interrupted `end` was completed.

        Raises `LocalError` STATE_MISSING or STATE_CORRUPT.
        """
        newest = self.read()[-1:]
        if newest and self.following.exists():
            own = ed25519_public(_read(self.following))
            if own in newest[0].members and ed25519_public(_read(self.key)) not in newest[0].members:
                self.following.replace(self.key)
        return _read(self.key)

    @property
    def rotating(self) -> bool:
        """Whether a rotation goes on."""
        return bool(self.next_id())

    def next_id(self) -> str:
        """The id (hex) of the key that follows; "" while none does."""
        newest = self.read()[-1:]
        self.secret()
        if not newest or not self.following.exists():
            return ""
        public = ed25519_public(_read(self.following))
        return key_id(public).hex() if public in newest[0].members else ""

    def begin(self, now_ms: int) -> TrustList:
        """Make the next key, and the list of both. Raises `LocalError` WRONG_STATE while a rotation goes on."""
        if self.rotating:
            detail = f"The {self.kind.value} key is being replaced already."
            fix = f"End it first: `fedless fleet rotate-keys {self.kind.value} --end`."
            raise LocalError(Code.WRONG_STATE, detail, fix=fix)
        secret, members = self.secret(), self.members()
        own = ed25519_public(secret)
        if own not in members:
            detail = f"{self.key} is not a key that the fleet's clients trust."
            raise LocalError(Code.CONFIG_INVALID, detail, fix="Name the file of the old key with --key.")
        if len(members) >= MEMBERS_MAX:
            raise LocalError(Code.WRONG_STATE, f"Clients trust {len(members)} keys, which is the most.")
        staying = (
            (own,) if self.kind is TrustKind.TICKET else members
        )  # of a rotation whose key was lost, nothing
        successor = os.urandom(KEY_BYTES)
        write_private(self.following, ed25519_pem(successor))
        return self._hand_on((*staying, ed25519_public(successor)), secret, now_ms)

    def end(self, now_ms: int) -> TrustList:
        """Let the next key take the old one's place. Raises `LocalError` WRONG_STATE when none waits."""
        if not self.rotating:
            detail = f"The {self.kind.value} key is not being replaced."
            fix = f"Begin with `fedless fleet rotate-keys {self.kind.value}`."
            raise LocalError(Code.WRONG_STATE, detail, fix=fix)
        old, successor = ed25519_public(self.secret()), _read(self.following)
        staying = tuple(member for member in self.members() if member != old)
        made = self._hand_on(staying, successor, now_ms)
        self.secret()
        return made

    def _hand_on(self, members: Sequence[bytes], signer: bytes, now_ms: int) -> TrustList:
        known, public = self.read(), ed25519_public(signer)
        made = sign_list(
            self.fleet, self.kind, next_number(known, now_ms), members, public,
            lambda message: ed25519_sign(signer, message),
        )  # fmt: skip
        write_private(self.lists, json.dumps(values_of((*known, made)), indent=1).encode())
        return made


def next_number(known: Sequence[TrustList], now_ms: int) -> int:
    """A number that no list had before, not even one that a restored back-up does not know of."""
    return max(known[-1].number + 1 if known else 1, now_ms // 1000)


def read_lists(path: Path) -> tuple[TrustList, ...]:
    """The signed lists in a file; none without the file. Raises `LocalError` STATE_CORRUPT."""
    try:
        return lists_of(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        detail = f"{path} cannot be read ({type(error).__name__})."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore it from a back-up.") from error


def _read(path: Path) -> bytes:
    try:
        return ed25519_from_pem(path.read_bytes())
    except OSError as error:
        detail = f"Expected the {path.stem} key in {path}."
        raise LocalError(Code.STATE_MISSING, detail, fix="Restore it from a back-up.") from error
