"""The device's identity on its disk: key, certificate chain, authority, and what the fleet told it.

`DIR/identity/` holds `key.pem`, `chain.pem`, `authority.pem` and `fleet.json`, each 0600 and replaced whole. The key
is made here and never leaves. `fleet.json` is written last: with it, the device is enrolled. Called by `enroll`, the
participant, `doctor` and `status`; the agent reads `fleet.json` and the PEM files itself, since it holds no crypto.
X.509 is imported where it is used: a participant that only loads its identity does without, and starts 30 ms sooner.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.disk import sync_folder, write_whole
from fedless.protocol.crypto import KEY_BYTES, key_id
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import NOISE_MAX, Endpoints, Enrollment, Mode, SigningKey
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.trust import HELPER_MEMBER_BYTES, TrustKind

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KEY, CHAIN, AUTHORITY, FLEET = "key.pem", "chain.pem", "authority.pem", "fleet.json"
_NEWER = frozenset({"helper_signing_key", "helper_also"})
"""Fields of a policy that earlier versions refuse to read."""
_AUTHORITY_PREFIX = "@authority-"
_AGAIN = "Enroll again: `fedless-edge enroll`, with a new claim."


@dataclass(frozen=True)
class Identity:
    """An enrolled device: who it is, what it trusts, where it calls. PEM texts as bytes.

    `authority_pem` has the fleet's authority; while another follows it, both. `trust_numbers`: the newest list that it
    followed of each kind of trust. `server_name` is the DNS name that every server of the fleet proves. `issued_at_ms`
    is when the certificate came (it is backdated), `not_after_ms` when it ends; Unix ms of the authority's clock.
    """

    fleet: str
    client_id: str
    server_name: str
    endpoints: Endpoints
    ticket_keys: tuple[SigningKey, ...]
    publisher_keys: tuple[SigningKey, ...]
    policy: Policy
    chain_pem: bytes
    authority_pem: bytes
    key_pem: bytes = field(repr=False)
    issued_at_ms: int
    not_after_ms: int
    trust_numbers: Mapping[str, int] = field(default_factory=dict)

    def renewal_due(self, now_ms: int) -> bool:
        """Whether two thirds of the certificate's lifetime are over."""
        return now_ms - self.issued_at_ms >= (self.not_after_ms - self.issued_at_ms) * 2 // 3

    def renewal_urgent(self, now_ms: int) -> bool:
        """Whether five sixths are over: then a renewal waits for no better moment."""
        return now_ms - self.issued_at_ms >= (self.not_after_ms - self.issued_at_ms) * 5 // 6

    @property
    def certificate_der(self) -> bytes:
        """The device's own certificate."""
        return certificates_of(self.chain_pem)[0]

    @property
    def authorities(self) -> tuple[bytes, ...]:
        """The authorities whose certificates are believed (DER)."""
        return certificates_of(self.authority_pem)

    @property
    def issued_by(self) -> str:
        """Who signed the device's own certificate, as the aggregator is told: 32 hex digits of the digest."""
        return _mark(certificates_of(self.chain_pem)[-1])

    @property
    def trusts(self) -> tuple[str, ...]:
        """Whom this device trusts, as the aggregator is told: authorities' digests and key ids, 32 hex digits."""
        keys = (*self.ticket_keys, *self.publisher_keys)
        helpers = (key_id(each).hex() for each in self.policy.helpers)
        return (*map(_mark, self.authorities), *(key.key_id.hex() for key in keys), *helpers)

    @property
    def publishers(self) -> dict[bytes, bytes]:
        """Key id -> raw Ed25519 key of those whose bundles are run."""
        return {key.key_id: key.public_key for key in self.publisher_keys}


class Keystore:
    """`DIR/identity/` of one state directory."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "identity"

    @property
    def enrolled(self) -> bool:
        """Whether an enrollment was completed here."""
        return (self.folder / FLEET).is_file()

    def make_key(self) -> EllipticCurvePrivateKey:
        """The device's key; a new one is on the disk before this returns. A repeat returns the same.

        Raises `LocalError` STATE_CORRUPT for a file that is no P-256 key.
        """
        from fedless.protocol import identity  # noqa: PLC0415 - see above

        path = self.folder / KEY
        if path.exists():
            return _read_key(path)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(self.folder.parent)
        key = identity.new_key()
        write_whole(path, identity.key_pem(key))
        return key

    def forget(self) -> None:
        """Before enrolling anew: the old identity is no longer one, and its key is removed."""
        for name in (FLEET, CHAIN, AUTHORITY, KEY):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.is_dir():
            sync_folder(self.folder)

    def store(
        self,
        enrollment: Enrollment,
        authorities: Sequence[bytes],
        policy: Policy,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """Keep what Enroll or Renew answered, after it was verified; `fleet.json` last.

        `authorities` (DER) are those that are believed now, `numbers` as `Identity.trust_numbers`.
        """
        chain = chain_pem(enrollment.chain_der)
        write_whole(self.folder / AUTHORITY, chain_pem(authorities))
        write_whole(self.folder / CHAIN, chain)
        write_whole(self.folder / FLEET, _fleet_json(enrollment, policy, numbers or {}))

    def set_policy(self, policy: Policy) -> None:
        """Replace the policy, on the wish of the device's owner. Another helper has followed no list."""
        path = self.folder / FLEET
        values = _read_json(path)
        if policy_from(values["policy"]).helpers[:1] != policy.helpers[:1]:
            values.get("trust", {}).pop(TrustKind.HELPER.value, None)
        values["policy"] = _kept(policy)
        write_whole(path, json.dumps(values, indent=1).encode())

    def load(self) -> Identity:
        """The identity. Raises `LocalError` STATE_MISSING if not enrolled, STATE_CORRUPT if damaged."""
        if not self.enrolled:
            raise LocalError(
                Code.STATE_MISSING,
                f"{self.folder.parent} is not enrolled in a fleet.",
                fix="Run `fedless-edge enroll` with a claim from `fedless fleet claim`.",
            )
        values = _read_json(self.folder / FLEET)
        try:
            pems = [(self.folder / name).read_bytes() for name in (CHAIN, AUTHORITY, KEY)]
            places = {name: tuple(values["endpoints"][name]) for name in ("fleet", "mqtt", "enrollment")}
            return Identity(
                fleet=values["fleet"],
                client_id=values["client_id"],
                server_name=values["server_name"],
                endpoints=Endpoints(**places),
                ticket_keys=_keys(values["ticket_keys"]),
                publisher_keys=_keys(values["publisher_keys"]),
                policy=policy_from(values["policy"]),
                chain_pem=pems[0],
                authority_pem=pems[1],
                key_pem=pems[2],
                issued_at_ms=int(values["issued_at_ms"]),
                not_after_ms=int(values["not_after_ms"]),
                trust_numbers={str(kind): int(n) for kind, n in values.get("trust", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            detail = f"{self.folder} is damaged or incomplete ({type(error).__name__})."
            raise LocalError(Code.STATE_CORRUPT, detail, fix=_AGAIN) from error

    def open_files(self) -> list[str]:
        """Names of files that others than their owner may read; there must be none."""
        paths = [self.folder / name for name in (KEY, CHAIN, AUTHORITY, FLEET)]
        return [str(p) for p in paths if p.exists() and stat.S_IMODE(os.stat(p).st_mode) & 0o077]  # noqa: PTH116


def chain_pem(chain_der: Sequence[bytes]) -> bytes:
    """Certificates (DER) as one PEM text, in their order."""
    return b"".join(_pem(der) for der in chain_der)


def authority_fleet(authority_pem: bytes) -> tuple[bytes, str]:
    """An authority's certificate (of several the first) in DER and the fleet that it names.

    Raises `PeerError` CLAIM_FOREIGN.
    """
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    try:
        certificate = x509.load_pem_x509_certificate(authority_pem)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        common = str(names[0].value)
    except (ValueError, IndexError) as error:
        raise PeerError(
            Code.CLAIM_FOREIGN, "What is served there is not an authority's certificate."
        ) from error
    if not common.startswith(_AUTHORITY_PREFIX):
        raise PeerError(Code.CLAIM_FOREIGN, "The certificate there is not that of a fleet's authority.")
    der = certificate.public_bytes(Encoding.DER)
    return der, common.removeprefix(_AUTHORITY_PREFIX)


def policy_values(policy: Policy) -> dict[str, object]:
    """A policy as JSON values."""
    return {
        "minimum_cohort": policy.minimum_cohort,
        "minimum_threshold": policy.minimum_threshold,
        "modes": sorted(policy.modes),
        "count_functions": policy.count_functions,
        "trust": str(policy.trust),
        "helper_key_digest": policy.helper_key_digest.hex(),
        "helper_signing_key": policy.helper_signing_key.hex(),
        "helper_also": [each.hex() for each in policy.helper_also],
        "minimum_noise": policy.minimum_noise,
    }


def _kept(policy: Policy) -> dict[str, object]:
    """As the file has it: newer fields only where they say something, since an update may be taken back."""
    values = policy_values(policy)
    return {name: value for name, value in values.items() if value or name not in _NEWER}


def policy_from(values: dict[str, object]) -> Policy:
    """The policy in JSON values; ValueError or TypeError for values that are none."""
    known = policy_values(Policy())
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        message = f"unknown {', '.join(unknown)}"
        raise ValueError(message)
    merged = known | values
    modes = merged["modes"]
    if not isinstance(modes, list):
        message = "modes must be a list"
        raise TypeError(message)
    also = merged["helper_also"]
    if not isinstance(also, list):
        message = "helper_also is what the helper named, and is not set by hand"
        raise TypeError(message)
    return Policy(
        minimum_cohort=_whole(merged["minimum_cohort"]),
        minimum_threshold=_whole(merged["minimum_threshold"]),
        modes=frozenset(Mode(mode) for mode in modes),
        count_functions=bool(merged["count_functions"]),
        trust=Trust(str(merged["trust"])),
        helper_key_digest=bytes.fromhex(str(merged["helper_key_digest"])),
        helper_signing_key=_bytes(merged["helper_signing_key"], 0, KEY_BYTES),
        helper_also=tuple(_bytes(each, HELPER_MEMBER_BYTES) for each in also),
        minimum_noise=_noise(merged["minimum_noise"]),
    )


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        found = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise LocalError(Code.STATE_CORRUPT, f"{path} is not a key.", fix=_AGAIN) from error
    if not isinstance(found, EllipticCurvePrivateKey):
        raise LocalError(Code.STATE_CORRUPT, f"{path} is not a P-256 key.", fix=_AGAIN)
    return found


def _noise(value: object) -> float:
    found = float(str(value))
    if not 0 <= found <= NOISE_MAX:
        message = f"expected a number from 0 to {NOISE_MAX:g}, found {value!r}"
        raise ValueError(message)
    return found


def _bytes(value: object, *sizes: int) -> bytes:
    found = bytes.fromhex(str(value))
    if len(found) not in sizes:
        message = f"expected {sizes[-1]} bytes in hex, found {len(found)}"
        raise ValueError(message)
    return found


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        message = f"expected a whole number from 0 on, found {value!r}"
        raise ValueError(message)
    return value


def _fleet_json(enrollment: Enrollment, policy: Policy, numbers: Mapping[str, int]) -> bytes:
    from cryptography import x509  # noqa: PLC0415 - see above

    from fedless.protocol.identity import server_name  # noqa: PLC0415

    leaf = x509.load_der_x509_certificate(enrollment.chain_der[0])
    values = {
        "fleet": enrollment.fleet,
        "client_id": enrollment.client_id,
        "server_name": server_name(enrollment.fleet),
        "endpoints": {
            "fleet": enrollment.endpoints.fleet,
            "mqtt": enrollment.endpoints.mqtt,
            "enrollment": enrollment.endpoints.enrollment,
        },
        "ticket_keys": _keys_values(enrollment.ticket_keys),
        "publisher_keys": _keys_values(enrollment.publisher_keys),
        "policy": _kept(policy),
        "trust": dict(numbers),
        "issued_at_ms": enrollment.now_ms,
        "not_after_ms": int(leaf.not_valid_after_utc.timestamp() * 1000),
    }
    return json.dumps(values, indent=1).encode()


def _keys_values(keys: Sequence[SigningKey]) -> list[dict[str, str]]:
    return [{"id": key.key_id.hex(), "public": key.public_key.hex()} for key in keys]


def _keys(values: list[dict[str, str]]) -> tuple[SigningKey, ...]:
    return tuple(SigningKey(bytes.fromhex(v["id"]), bytes.fromhex(v["public"])) for v in values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LocalError(Code.STATE_CORRUPT, f"{path} cannot be read.", fix=_AGAIN) from error
    if not isinstance(values, dict):
        raise LocalError(Code.STATE_CORRUPT, f"{path} is not a JSON object.", fix=_AGAIN)
    return values


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der).replace(b"\n", b"")
    lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def certificates_of(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM text, as DER."""
    import ssl  # noqa: PLC0415  (after the round)

    end = b"-----END CERTIFICATE-----"
    *pieces, _ = pem.split(end)
    return tuple(ssl.PEM_cert_to_DER_cert((piece.lstrip() + end).decode("ascii")) for piece in pieces)


def _mark(authority_der: bytes) -> str:
    return hashlib.sha256(authority_der).hexdigest()[:32]
