"""One authority follows another without a device being visited: the phases, and the files that they rest on.

=========== ===================== ===================== ============================ =================================
phase       signs for clients     signed for servers    believed                     files in the authority's folder
=========== ===================== ===================== ============================ =================================
settled     authority             authority             authority                    authority.pem, authority.key
cross-trust authority             authority             authority, next              also next.pem, next.key
issuing     next                  authority             authority, next              the same
settled     next, now `authority` the same              the same                     authority.pem, authority.key
=========== ===================== ===================== ============================ =================================

Servers prove themselves by the old authority until the end, so a device that was away throughout still believes them,
and hears of the new one with its next renewal. `rollover.json` has the phase and the signed lists, and is replaced last
in every step; with `retiring` in it, the files' new names are completed when they are next read. The service
takes each step up while it runs (`reload`). Called by the command line and by `main`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from aggregator.authority import Authority
from aggregator.founding import renew_server, write_private
from aggregator.keyring import next_number
from fedless.protocol import identity
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.listing import lists_of, values_of
from fedless.protocol.succession import sign_list
from fedless.protocol.trust import TrustKind, TrustList

STATE, TRUSTED = "rollover.json", "trusted.pem"
CURRENT, NEXT = "authority", "next"


class Phase(StrEnum):
    """How far one authority has followed another."""

    SETTLED = "settled"
    CROSS_TRUST = "cross-trust"
    ISSUING = "issuing"
    RETIRING = "retiring"


@dataclass(frozen=True)
class Authorities:
    """A fleet's authorities at one moment: who signs for clients, who for servers, and the signed lists of them."""

    issuing: Authority
    serving: Authority
    phase: Phase = Phase.SETTLED
    lists: tuple[TrustList, ...] = ()
    following: Authority | None = None

    @classmethod
    def load(cls, directory: Path, fleet: str) -> Authorities:
        """Those in a folder, after an interrupted step was completed. Raises `LocalError` as `Authority.load`."""
        phase, lists = _complete(directory, *_read(directory))
        current = Authority.load(directory, fleet)
        if phase is Phase.SETTLED:
            return cls(current, current, phase, lists)
        following = Authority.load(directory, fleet, NEXT)
        issuing = following if phase is Phase.ISSUING else current
        return cls(issuing, current, phase, lists, following)

    @classmethod
    def of(cls, authority: Authority) -> Authorities:
        """A fleet whose authority is not being replaced."""
        return cls(authority, authority)

    @property
    def fleet(self) -> str:
        """Whose they are."""
        return self.issuing.fleet

    @property
    def believed(self) -> tuple[Authority, ...]:
        """Whose certificates are believed."""
        return (self.serving,) if self.following is None else (self.serving, self.following)

    @property
    def ders(self) -> tuple[bytes, ...]:
        """The certificates of those who are believed (DER)."""
        return tuple(authority.der for authority in self.believed)

    @property
    def pem(self) -> bytes:
        """The same as one PEM text."""
        return b"".join(authority.pem for authority in self.believed)

    def chain(self, leaf_der: bytes) -> tuple[bytes, bytes]:
        """A certificate of the fleet with the authority that signed it."""
        signer = next((one for one in self.believed if one.signed(leaf_der)), self.issuing)
        return leaf_der, signer.der

    def revocation_list(self, serials: Iterable[str], now_ms: int) -> bytes:
        """A CRL (PEM) of the serials (hex) by each authority that is believed."""
        revoked = list(serials)
        return b"".join(authority.revocation_list(revoked, now_ms) for authority in self.believed)


def mark(authority: Authority) -> str:
    """An authority as devices name it in their status: 32 hex digits."""
    return sha256(authority.der).hexdigest()[:32]


def begin(directory: Path, fleet: str, now_ms: int) -> Authorities:
    """Settled -> cross-trust: a new authority, in a list that the old one signs. Raises `LocalError` WRONG_STATE."""
    now = _expect(directory, fleet, Phase.SETTLED)
    following = Authority.create(fleet, now_ms, follows=True)
    write_private(directory / f"{NEXT}.key", following.key_pem)
    write_private(directory / f"{NEXT}.pem", following.pem)
    lists = _handed_on(now, (now.serving, following), now.serving, now_ms)
    return _enter(directory, fleet, Phase.CROSS_TRUST, lists)


def issue(directory: Path, fleet: str) -> Authorities:
    """Cross-trust -> issuing: clients get certificates of the new authority. Raises `LocalError` WRONG_STATE."""
    now = _expect(directory, fleet, Phase.CROSS_TRUST)
    return _enter(directory, fleet, Phase.ISSUING, now.lists)


def retire(directory: Path, fleet: str, now_ms: int) -> Authorities:
    """Issuing -> settled: the old authority is dropped, and its key removed. Raises `LocalError` WRONG_STATE."""
    now = _expect(directory, fleet, Phase.ISSUING)
    lists = _handed_on(now, (now.issuing,), now.issuing, now_ms)
    return _enter(directory, fleet, Phase.RETIRING, lists)


def _expect(directory: Path, fleet: str, phase: Phase) -> Authorities:
    now = Authorities.load(directory, fleet)
    if now.phase is not phase:
        detail = f"Expected the phase {phase.value}, found {now.phase.value}."
        raise LocalError(Code.WRONG_STATE, detail, fix="See `fedless fleet authority show`.")
    return now


def _handed_on(
    now: Authorities, believed: tuple[Authority, ...], signer: Authority, now_ms: int
) -> tuple[TrustList, ...]:
    members = [authority.der for authority in believed]
    number = next_number(now.lists, now_ms)
    made = sign_list(now.fleet, TrustKind.AUTHORITY, number, members, signer.der, signer.sign)
    return (*now.lists, made)


def _enter(directory: Path, fleet: str, phase: Phase, lists: tuple[TrustList, ...]) -> Authorities:
    """Record the phase and the lists; then `trusted.pem`, for those who are given the certificates by hand."""
    _write(directory, phase, lists)
    entered = Authorities.load(directory, fleet)
    write_private(directory / TRUSTED, entered.pem)
    return entered


def _write(directory: Path, phase: Phase, lists: tuple[TrustList, ...]) -> None:
    values = {"phase": phase.value, "lists": values_of(lists)}
    write_private(directory / STATE, json.dumps(values, indent=1).encode())


def _read(directory: Path) -> tuple[Phase, tuple[TrustList, ...]]:
    path = directory / STATE
    try:
        values = json.loads(path.read_bytes())
        return Phase(values["phase"]), lists_of(values["lists"])
    except FileNotFoundError:
        return Phase.SETTLED, ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = f"{path} cannot be read ({type(error).__name__})."
        raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore it from a back-up.") from error


def _complete(
    directory: Path, phase: Phase, lists: tuple[TrustList, ...]
) -> tuple[Phase, tuple[TrustList, ...]]:
    """Give the new authority's files their lasting names, if that is what is left of a step."""
    if phase is not Phase.RETIRING:
        return phase, lists
    for suffix in ("key", "pem"):
        path = directory / f"{NEXT}.{suffix}"
        if path.exists():
            path.replace(directory / f"{CURRENT}.{suffix}")
    _write(directory, Phase.SETTLED, lists)
    return Phase.SETTLED, lists


def renewed_operator(directory: Path, now: Authorities, now_ms: int) -> bool:
    """Gives the operator's folder beside this fleet the authorities, and a certificate of the one that issues.

    False, and nothing done, where there is no such folder.
    """
    if not (directory / "cert.key").exists():
        return False
    write_private(directory / "authority.pem", now.pem)
    renew_server(directory, now.issuing, identity.Role.OPERATOR, now_ms)
    return True
