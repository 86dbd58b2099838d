"""Joining a fleet: a claim, once, becomes a certificate for a key that was made here.

Called by `fedless-edge enroll`. The order makes every power cut harmless: the key is on the disk first; the same claim
with the same key gets the same certificate; `fleet.json`, written last, is what being enrolled means. Nothing from the
address in the claim is believed before the authority's certificate fits the claim.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from edge_runtime import link, pinned
from edge_runtime.clock import not_before, unix_ms
from edge_runtime.config import FILE, starter
from edge_runtime.disk import write_whole
from edge_runtime.heads import FOLDER, Heads
from edge_runtime.keystore import Keystore, authority_fleet
from fedless.protocol import identity
from fedless.protocol.claim import authority_digest, parse_claim
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.messages import Enrollment
from fedless.protocol.secagg.policy import from_enrollment
from fedless.protocol.trust import TrustKind

AUTHORITY_PATH = "/ca.pem"
BUDGET_S = 15.0
DAY_MS = 86_400_000
_HTTP_S = 10.0
_PEM_BYTES_MAX = 64 * 1024
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Joined:
    """What came of it. `clock_ahead_ms`: how far this device's clock is ahead of the aggregator's."""

    fleet: str
    client_id: str
    clock_ahead_ms: int


def enroll(
    state: Path, claim_text: str, *, again: bool = False, observe: Callable[[str], None] = lambda _: None
) -> Joined:
    """Join the fleet that the claim names, with `state` as the state directory.

    `again` gives an identity that is here already up. Raises `LocalError` STATE_EXISTS, CLOCK_WRONG, STATE_CORRUPT;
    `PeerError` CLAIM_*, AGGREGATOR_UNREACHABLE, FOREIGN_CERTIFICATE.
    """
    claim = parse_claim(claim_text)
    keys = Keystore(state)
    if keys.enrolled and not again:
        joined = keys.load()
        raise LocalError(
            Code.STATE_EXISTS,
            f"{state} is enrolled as {joined.client_id!r} in fleet {joined.fleet!r}.",
            fix="Use another --state, or --again to give that identity up.",
        )
    own_policy = keys.load().policy if keys.enrolled else None
    if keys.enrolled:
        keys.forget()
        Heads(state / FOLDER, 0).erase()  # what was made for another fleet is nobody's any more
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = keys.make_key()
    observe("key_made")
    authority_pem, their_ms = link.patiently(lambda: _fetch_authority(claim.address), budget_s=BUDGET_S)
    authority_der, fleet = authority_fleet(authority_pem)
    if authority_digest(authority_der) != claim.authority:
        raise PeerError(
            Code.CLAIM_FOREIGN,
            f"The authority served at {claim.address} is another one.",
            fix="Check the address, and that the claim is of this fleet and not of before its authority was replaced. "
            "If all are right, someone is in between.",
        )
    observe("authority_checked")
    reply = _exchange(claim.address, authority_pem, fleet, claim.secret, identity.make_csr(key), their_ms)
    observe("answered")
    newest = {each.kind: each for each in reply.trust_lists}
    followers = newest.get(TrustKind.AUTHORITY)
    authorities = followers.members if followers is not None else (authority_der,)
    if authority_der not in authorities:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "The answer's list of authorities lacks the claimed one.")
    _check(reply, authorities, fleet, identity.public_der(key.public_key()))
    numbers = {kind.value: each.number for kind, each in newest.items()}
    policy = pinned.joined(from_enrollment(reply.policy, own_policy), fleet, reply.trust_lists, numbers)
    keys.store(reply, authorities, policy, numbers)
    observe("stored")
    if not (state / FILE).exists():
        write_whole(state / FILE, starter().encode(), mode=0o644)
    return Joined(reply.fleet, reply.client_id, unix_ms() - reply.now_ms)


def clock_complaint(ahead_ms: int) -> str:
    """A sentence about a clock that is off by more than a minute, or ""."""
    if abs(ahead_ms) < _MINUTE_MS:
        return ""
    size = abs(ahead_ms)
    amount = f"{size / DAY_MS:.0f} days" if size >= DAY_MS else f"{size / _MINUTE_MS:.0f} minutes"
    side = "ahead of" if ahead_ms > 0 else "behind"
    trouble = (
        "Wake-ups will be refused as expired and certificates as past their end"
        if ahead_ms > 0
        else "Wake-ups past their deadline will not be recognised as such"
    )
    return (
        f"This device's clock is {amount} {side} the aggregator's. {trouble}: set the clock (`timedatectl`)."
    )


def _fetch_authority(address: str) -> tuple[bytes, int]:
    """The authority's certificate as PEM, and the server's clock (Unix ms, 0: not told). Plain HTTP: it is public."""
    connection = http.client.HTTPConnection(address, timeout=_HTTP_S)
    try:
        connection.request("GET", AUTHORITY_PATH)
        response = connection.getresponse()
        body = response.read(_PEM_BYTES_MAX)
        told = response.getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        raise PeerError(
            Code.AGGREGATOR_UNREACHABLE,
            f"Nothing answers at {address} ({type(error).__name__}: {error}).",
            fix="Check the network and that the aggregator runs; then give the same claim again.",
        ) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise PeerError(
            Code.CLAIM_FOREIGN,
            f"{address} answered {response.status} to GET {AUTHORITY_PATH}: no fedless authority.",
        )
    return body, _unix_ms(told)


def _exchange(
    address: str, authority_pem: bytes, fleet: str, secret: str, csr_der: bytes, their_ms: int
) -> Enrollment:
    """Call Enroll. A clock that is far off makes TLS fail: that is said as such."""
    name = identity.server_name(fleet)
    try:
        return link.patiently(
            lambda: link.enroll(address, authority_pem, name, secret, csr_der), budget_s=BUDGET_S
        )
    except FedlessError as error:
        ahead = unix_ms() - their_ms if their_ms else 0
        if error.code in (Code.AGGREGATOR_UNREACHABLE, Code.CLOCK_WRONG) and abs(ahead) > DAY_MS:
            raise LocalError(
                Code.CLOCK_WRONG, clock_complaint(ahead), fix="Then give the same claim again."
            ) from error
        raise


def _check(reply: Enrollment, authorities: Sequence[bytes], fleet: str, public_der: bytes) -> None:
    """That the certificate is for our key, by an authority of the fleet, for a device of this fleet."""
    moment = not_before(reply.now_ms)
    name, key = identity.verify_chain(reply.chain_der, authorities, fleet, moment)
    if identity.public_der(key) != public_der or reply.chain_der[-1] not in authorities:
        raise PeerError(Code.FOREIGN_CERTIFICATE, "The certificate is not for the key that was made here.")
    if name.role is not identity.Role.DEVICE or name.id != reply.client_id or reply.fleet != fleet:
        raise PeerError(Code.FOREIGN_CERTIFICATE, f"The certificate names {name.uri}.")
    if not reply.endpoints.fleet or not reply.endpoints.mqtt:
        raise PeerError(Code.MALFORMED, "The answer names no fleet port or no broker.")
    if not reply.ticket_keys or not reply.publisher_keys:
        raise PeerError(Code.MALFORMED, "The answer holds no ticket key or no publisher key.")


def _unix_ms(date: str | None) -> int:
    try:
        return int(parsedate_to_datetime(date).timestamp() * 1000) if date else 0
    except ValueError:
        return 0
