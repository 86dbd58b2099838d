"""A new certificate before the old one ends, and what the fleet says with it: addresses, keys, a tighter policy.

Called by the participant after a round, when `Identity.renewal_due` says so. The key stays. New
ticket and publisher keys count only if a key that is trusted already has signed them. Nothing restarts: the next
participant and the agent's next connection read the new files.
"""

from __future__ import annotations

from dataclasses import replace

from edge_runtime.clock import not_before
from edge_runtime.keystore import Identity, Keystore, authority_fleet
from edge_runtime.link import Link, SignedKeys
from fedless.protocol import identity
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Enrollment, SigningKey
from fedless.protocol.secagg.policy import tighten
from fedless.protocol.signed import verify_keys


def renew(link: Link, keys: Keystore, own: Identity) -> Identity:
    """Get, verify and store a new certificate; the identity from now on. Raises `FedlessError`, changing nothing."""
    key = keys.make_key()
    told = link.renew(identity.make_csr(key))
    authority_der, _ = authority_fleet(own.authority_pem)
    name, public = identity.verify_chain(told.chain_der, authority_der, own.fleet, not_before(told.now_ms))
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
        ticket_keys=_keys(told.ticket_keys, own.ticket_keys),
        publisher_keys=_keys(told.publisher_keys, own.publisher_keys),
        policy=told.policy,
        now_ms=told.now_ms,
    )
    keys.store(enrollment, authority_der, tighten(own.policy, told.policy))
    return keys.load()


def _keys(told: SignedKeys, trusted: tuple[SigningKey, ...]) -> tuple[SigningKey, ...]:
    """The new keys, if a trusted one has signed them; the old ones if there is no change."""
    if not told.keys:
        return trusted
    verify_keys(told.keys, told.signed_by, told.signature, trusted)
    return told.keys
