"""A new certificate before the old one ends, and what the fleet says with it: addresses, keys, a tighter policy.

Called by the participant when `Identity.renewal_due` says so, and when the fleet asks for it. The key stays. New
ticket keys, publisher keys and authorities count only if one that is trusted already has signed them (`succession`);
so does another helper, by the helper's own key (`pinned`).
Nothing restarts: the next participant and the agent's next connection read the new files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_runtime.clock import not_before
from edge_runtime.keystore import Identity, Keystore
from edge_runtime.link import Link, Renewal
from edge_runtime.pinned import followed
from fedless.protocol import identity
from fedless.protocol.crypto import key_id
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Enrollment, SigningKey
from fedless.protocol.secagg.policy import tighten
from fedless.protocol.succession import follow
from fedless.protocol.trust import TrustKind


def renew(link: Link, keys: Keystore, own: Identity) -> Identity:
    """Get, verify and store a new certificate; the identity from now on. Raises `FedlessError`, changing nothing."""
    key = keys.make_key()
    told = link.renew(identity.make_csr(key), own.trust_numbers)
    numbers = dict(own.trust_numbers)
    authorities = _follow(TrustKind.AUTHORITY, own.authorities, own.fleet, told, numbers)
    name, public = identity.verify_chain(told.chain_der, authorities, own.fleet, not_before(told.now_ms))
    expected = identity.Name(own.fleet, identity.Role.DEVICE, own.client_id)
    if name != expected or identity.public_der(public) != identity.public_der(key.public_key()):
        raise PeerError(
            Code.FOREIGN_CERTIFICATE, f"The new certificate names {name.uri}, or not this device's key."
        )
    enrollment = Enrollment(
        fleet=own.fleet,
        client_id=own.client_id,
        chain_der=told.chain_der,
        endpoints=replace(
            told.endpoints,
            fleet=told.endpoints.fleet or own.endpoints.fleet,
            mqtt=told.endpoints.mqtt or own.endpoints.mqtt,
            enrollment=told.endpoints.enrollment or own.endpoints.enrollment,
        ),
        ticket_keys=_keys(TrustKind.TICKET, own.ticket_keys, own.fleet, told, numbers),
        publisher_keys=_keys(TrustKind.PUBLISHER, own.publisher_keys, own.fleet, told, numbers),
        policy=told.policy,
        now_ms=told.now_ms,
    )
    policy = followed(tighten(own.policy, told.policy), own.fleet, told.trust_lists, numbers)
    keys.store(enrollment, authorities, policy, numbers)
    return keys.load()


def _follow(
    kind: TrustKind, trusted: Sequence[bytes], fleet: str, told: Renewal, numbers: dict[str, int]
) -> tuple[bytes, ...]:
    """Whom it trusts from now on; `numbers` is kept up."""
    members, number = follow(fleet, kind, trusted, numbers.get(kind.value, 0), told.trust_lists)
    if number:
        numbers[kind.value] = number
    return members


def _keys(
    kind: TrustKind, trusted: Sequence[SigningKey], fleet: str, told: Renewal, numbers: dict[str, int]
) -> tuple[SigningKey, ...]:
    raw = _follow(kind, [key.public_key for key in trusted], fleet, told, numbers)
    return tuple(SigningKey(key_id(key), key) for key in raw)
