"""How clients join, renew and leave: claims, enrollment, renewal, revocation, over the store.

Every step is one transaction that also holds the signed certificate, so a crash between any two
steps costs nothing: the same claim with the same key gets the same certificate, byte for byte.
Called by the services and, when no service runs, by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from aggregator.authorities import Authorities, Phase, mark
from aggregator.authority import Callers, Issued
from aggregator.config import Settings
from aggregator.functions import Functions, is_function
from aggregator.helper_keys import read_helper_keys
from aggregator.interfaces import ClientRecord, Clock, Random
from aggregator.keyring import Keyring
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from aggregator.store.functions import ids as function_ids
from fedless.protocol import identity
from fedless.protocol.claim import Claim, base32, secret_hash, secret_text
from fedless.protocol.crypto import key_id
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Endpoints, Enrollment, EnrollRequest, Mode, PolicyMessage, SigningKey
from fedless.protocol.trust import TrustKind, TrustList

T = TypeVar("T")
CLAIMS_MAX = 10_000
LABELS_MAX = 32
LABEL_LENGTH_MAX = 128
HOUR_MS = 3_600_000
AUTHORITY, CERTIFICATE = TrustKind.AUTHORITY.value, "certificate"
_log = structlog.get_logger("enrollment")


@dataclass(frozen=True)
class IssuedClaim:
    """A fresh claim; the text is a secret and exists only here and in the caller's hands."""

    client_id: str
    text: str = field(repr=False)
    expires_at_ms: int


@dataclass(frozen=True)
class Terms:
    """What every new client is told, and how long things are good. `lists`: of ticket and publisher keys."""

    endpoints: Endpoints
    ticket_keys: tuple[SigningKey, ...]
    publisher_keys: tuple[SigningKey, ...]
    policy: PolicyMessage
    certificate_days: int
    claim_valid_hours: int
    lists: tuple[TrustList, ...] = ()

    def newer(self, numbers: Mapping[str, int]) -> tuple[TrustList, ...]:
        """The signed lists of keys that a client with these numbers (by kind) has not followed."""
        return tuple(each for each in self.lists if each.number > numbers.get(each.kind.value, 0))


class Registrar:
    """Keeps the list of clients; after a revocation `on_denied` hears the deny list, `on_revoked` whose it was.

    All of `on_online` hear who has come to the broker.
    """

    def __init__(
        self,
        database: Database,
        authorities: Authorities,
        terms: Terms,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._authorities = authorities
        self.terms = terms
        self._clock = clock
        self._random = random
        self.callers = Callers(authorities.ders, authorities.fleet)
        self.functions = Functions(database, authorities.serving, authorities.pem, clock, random)
        self.on_denied: Callable[[frozenset[str]], None] = lambda _: None
        self.on_revoked: Callable[[str], None] = lambda _: None
        self.on_online: list[Callable[[str], None]] = []

    def follow(self, authorities: Authorities, terms: Terms) -> None:
        """Keys or authorities have changed: who is believed from the next call on, and what clients are told."""
        believed = self._authorities.ders
        self._authorities, self.terms = authorities, terms
        self.functions.follow(authorities.serving, authorities.pem)
        if authorities.ders != believed:
            self.callers.follow(authorities.ders)
            self.on_denied(self.callers.denied)  # each authority signs the list of those it revoked

    async def load(self) -> None:
        """Reads the deny list; to be awaited before the first call is served."""
        self.callers.denied = await self._database.run(lambda c: store.deny_list(c, self._clock()))

    async def issue_claims(
        self,
        count: int,
        *,
        valid_ms: int = 0,
        client_ids: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> list[IssuedClaim]:
        """Fresh claims; `valid_ms` 0 means the configured time, no `client_ids` means new random ones.

        Raises `PeerError` OUT_OF_RANGE, RESERVED_NAME, or WRONG_STATE for a client that is enrolled.
        """
        labels = labels or {}
        if not 1 <= count <= CLAIMS_MAX or (client_ids and len(client_ids) != count):
            detail = f"Expected 1 to {CLAIMS_MAX} claims and as many ids or none; found {count} and {len(client_ids)}."
            raise PeerError(Code.OUT_OF_RANGE, detail)
        check_labels(labels)
        names = [identity.check_id(name, "client id") for name in client_ids]
        names = names or [f"device-{base32(self._random(5))}" for _ in range(count)]
        now_ms = self._clock()
        expires_at_ms = now_ms + (valid_ms or self.terms.claim_valid_hours * HOUR_MS)
        secrets = [secret_text(self._random(16)) for _ in names]

        def record(connection: Connection) -> None:
            for name, secret in zip(names, secrets, strict=True):
                digest = secret_hash(secret)
                if not store.add_claim(connection, name, digest, labels, now_ms, expires_at_ms):
                    raise PeerError(Code.WRONG_STATE, f"Client {name!r} is enrolled.", fix="Revoke it first.")

        await self._database.run(record)
        address = self.terms.endpoints.enrollment[0]
        authority = self._authorities.serving.digest  # whom the enrollment port proves itself by
        claims = [Claim(address, authority, secret).text for secret in secrets]
        _log.info("claims_issued", count=count)
        return [IssuedClaim(n, text, expires_at_ms) for n, text in zip(names, claims, strict=True)]

    async def enroll(self, request: EnrollRequest, source: str) -> Enrollment:
        """The certificate for a claim's client. `source` is the caller's address, for alarms.

        Raises `PeerError` BAD_CSR, CLAIM_UNKNOWN, CLAIM_EXPIRED, CLAIM_USED or CERTIFICATE_REVOKED.
        """
        public_key = identity.public_der(identity.check_csr(request.csr_der))
        digest, now_ms = secret_hash(request.secret), self._clock()

        def exchange(connection: Connection) -> tuple[str, bytes, PeerError | None]:
            claim = store.claim(connection, digest)
            if claim is None:
                raise PeerError(Code.CLAIM_UNKNOWN, fix="Ask the operator for a new claim.")
            client_id: str = claim.client_id
            if claim.used_at_ms:
                if claim.public_key != public_key:
                    store.add_alarm(connection, Code.CLAIM_USED.value, client_id, source, now_ms)
                    return client_id, b"", PeerError(Code.CLAIM_USED, fix="Ask the operator for a new claim.")
                if store.state_of(connection, client_id) != store.ENROLLED:
                    raise PeerError(Code.CERTIFICATE_REVOKED, fix="Ask the operator for a new claim.")
                return client_id, claim.leaf_der, None
            if claim.expires_at_ms <= now_ms:
                raise PeerError(Code.CLAIM_EXPIRED, fix="Ask the operator for a new claim.")
            issued = self._admit(connection, client_id, request.csr_der, claim.expires_at_ms)
            store.use_claim(connection, digest, public_key, issued.chain_der[0], now_ms)
            store.add_certificate(connection, client_id, issued.serial, now_ms, issued.not_after_ms)
            return client_id, issued.chain_der[0], None

        client_id, leaf_der, refusal = await self._database.run(exchange)
        if refusal is not None:  # returned, not raised in the transaction, so that the alarm is kept
            _log.warning("alarm", what=refusal.code.value, client=client_id, source=source)
            raise refusal
        _log.info("client_enrolled", client=client_id)
        return Enrollment(
            fleet=self._authorities.fleet,
            client_id=client_id,
            chain_der=self._authorities.chain(leaf_der),
            endpoints=self.terms.endpoints,
            ticket_keys=self.terms.ticket_keys,
            publisher_keys=self.terms.publisher_keys,
            policy=self.terms.policy,
            now_ms=now_ms,
            trust_lists=tuple({each.kind: each for each in self.trust_lists({})}.values()),
        )

    def trust_lists(self, numbers: Mapping[str, int]) -> tuple[TrustList, ...]:
        """The signed lists that a client has not followed yet; `numbers` of its newest ones, by kind."""
        followed = numbers.get(TrustKind.AUTHORITY.value, 0)
        authorities = tuple(each for each in self._authorities.lists if each.number > followed)
        return (*authorities, *self.terms.newer(numbers))

    def lacks(self, client: store.ClientRow) -> list[str]:
        """What a device, by its last status, does not have yet of what the fleet changed since it was founded.

        Kinds of trust whose newest list it has not followed; `certificate`, if it needs one of the new authority.
        """
        told = set(client.profile.get("trusts", ()))
        found = [kind.value for kind, wanted in self._wanted().items() if not wanted <= told]
        if TrustKind.HELPER in found and not told & self._named_helpers():
            found.remove(TrustKind.HELPER)  # it pins no signing key, or another helper: its owner's wish
        if self._authorities.phase is Phase.ISSUING:
            own = client.profile.get("issued_by", "")
            found += [CERTIFICATE] if own != mark(self._authorities.issuing) else []
        return sorted(found)

    def came(self, client_id: str) -> None:
        """A client has come to the broker."""
        for hear in self.on_online:
            hear(client_id)

    @property
    def changed(self) -> bool:
        """Whether the fleet has changed a key or its authority since it was founded."""
        return bool(self._authorities.lists or self.terms.lists)

    async def behind(self) -> list[tuple[store.ClientRow, list[str]]]:
        """The devices that lack something, and what."""
        every, functions = await self._database.run(lambda c: (store.all_clients(c), function_ids(c)))
        devices = [row for row in every if row.state == store.ENROLLED and row.client_id not in functions]
        return [(row, lacking) for row in devices if (lacking := self.lacks(row))]

    def _named_helpers(self) -> frozenset[str]:
        """All helpers that were ever in a list, as clients name them."""
        lists = (each for each in self.terms.lists if each.kind is TrustKind.HELPER)
        return frozenset(key_id(member).hex() for each in lists for member in each.members)

    def _wanted(self) -> Mapping[TrustKind, frozenset[str]]:
        """What clients name in their status, by kind; of kinds only that were changed since the fleet was founded."""
        wanted = {each.kind: frozenset(key_id(m).hex() for m in each.members) for each in self.terms.lists}
        if self._authorities.lists:
            wanted[TrustKind.AUTHORITY] = frozenset(map(mark, self._authorities.believed))
        return wanted

    async def renew(self, client_id: str, csr_der: bytes) -> Issued:
        """A new certificate for an enrolled client; raises `PeerError` BAD_CSR or UNKNOWN_CLIENT."""
        now_ms = self._clock()
        issued = self._issue(client_id, csr_der, now_ms)

        def record(connection: Connection) -> None:
            if store.state_of(connection, client_id) != store.ENROLLED:
                raise PeerError(Code.UNKNOWN_CLIENT, fix="Enroll again with a new claim.")
            if is_function(connection, client_id):
                raise PeerError(Code.WRONG_ROLE, "A cloud function's certificate ends with its invocation.")
            store.add_certificate(connection, client_id, issued.serial, now_ms, issued.not_after_ms)

        await self._database.run(record)
        _log.info("certificate_renewed", client=client_id)
        return issued

    async def revoke(self, client_id: str, reason: str) -> None:
        """Puts all certificates of a client on the deny list; raises `PeerError` UNKNOWN_CLIENT."""
        now_ms = self._clock()

        def record(connection: Connection) -> None:
            if not store.revoke(connection, client_id, reason[:LABEL_LENGTH_MAX], now_ms):
                raise PeerError(
                    Code.UNKNOWN_CLIENT, f"Found no {client_id[:64]!r}.", fix="See `fedless fleet list`."
                )

        await self.deny(record)
        self.on_revoked(client_id)
        _log.info("client_revoked", client=client_id, reason=reason)

    async def deny(self, record: Callable[[Connection], T]) -> T:
        """Records that certificates count no more; then the next call is judged, and the broker told, by that."""

        def work(connection: Connection) -> tuple[T, frozenset[str]]:
            return record(connection), store.deny_list(connection, self._clock())

        recorded, self.callers.denied = await self._database.run(work)
        self.on_denied(self.callers.denied)
        return recorded

    async def gone(self, client_id: str) -> bool:
        """Whether a client was revoked and has not joined again."""
        return await self._database.run(lambda c: store.state_of(c, client_id)) in store.GONE

    async def add_function(self, client_id: str, platform: str, settings_json: str) -> str:
        """Registers a cloud function; its deployment as JSON. Raises `PeerError` as `Functions.add`."""
        terms = self.terms
        return await self.functions.add(
            client_id, platform, settings_json, terms.ticket_keys, terms.publisher_keys, terms.policy
        )

    async def eligible(self) -> Sequence[ClientRecord]:
        """All enrolled clients that are not revoked, by id: this is the core's `Fleet`.

        While a new authority issues, whoever does not believe it yet must renew first: it would refuse the others.
        """
        rows = await self._database.run(store.all_clients)
        issuing = self._authorities.phase is Phase.ISSUING
        strangers = (
            {row.client_id for row, lacking in await self.behind() if AUTHORITY in lacking}
            if issuing
            else set()
        )
        return [
            ClientRecord(
                row.client_id,
                row.online,
                row.last_seen_ms,
                row.not_before_ms,
                row.labels,
                row.profile.get("cores", 0),
            )
            for row in rows
            if row.state == store.ENROLLED and row.client_id not in strangers
        ]

    def revocation_list(self) -> bytes:
        """The deny list as a CRL (PEM), for the broker."""
        return self._authorities.revocation_list(sorted(self.callers.denied), self._clock())

    def _admit(self, connection: Connection, client_id: str, csr_der: bytes, claim_ends_ms: int) -> Issued:
        """A device's long certificate, once; or a function's for one invocation, as often as there are claims."""
        enrolled = store.state_of(connection, client_id) == store.ENROLLED
        if is_function(connection, client_id):
            if not enrolled:
                raise PeerError(Code.CERTIFICATE_REVOKED, fix="Add the function again.")
            return self.functions.issue(client_id, csr_der, claim_ends_ms)
        if enrolled:  # by another claim for the same id
            raise PeerError(Code.CLAIM_USED, fix="Revoke the client before it joins with another claim.")
        now_ms = self._clock()
        store.enroll(connection, client_id, now_ms)
        return self._issue(client_id, csr_der, now_ms)

    def _issue(self, client_id: str, csr_der: bytes, now_ms: int) -> Issued:
        name = identity.Name(self._authorities.fleet, identity.Role.DEVICE, client_id)
        return self._authorities.issuing.issue(name, csr_der, now_ms, self.terms.certificate_days)


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises `PeerError(OUT_OF_RANGE)` for too many labels, or too long ones."""
    texts = [text for pair in labels.items() for text in pair]
    if len(labels) > LABELS_MAX or any(len(text) > LABEL_LENGTH_MAX for text in texts):
        detail = f"Expected at most {LABELS_MAX} labels of at most {LABEL_LENGTH_MAX} characters."
        raise PeerError(Code.OUT_OF_RANGE, detail)


def terms_of(settings: Settings, endpoints: Endpoints | None = None) -> Terms:
    """What new clients are told. Without `endpoints`: the ports as configured. Raises `LocalError`."""
    listen, broker = settings.listen, settings.broker
    configured = Endpoints(
        at_each(listen.hosts, listen.fleet_port),
        broker.addresses or at_each(listen.hosts, broker.port),
        at_each(listen.hosts, listen.enrollment_port),
    )
    tickets, publishers = ticket_ring(settings), publisher_ring(settings)
    helper = read_helper_keys(settings.helper, settings.fleet.name)
    policy = PolicyMessage(
        minimum_cohort=settings.policy.minimum_cohort,
        modes=tuple(Mode(m) for m in settings.policy.modes),
        helper_key_digest=helper.digest,
        helper_signing_key=helper.signing_key,
        minimum_noise=settings.policy.minimum_noise,
    )
    return Terms(
        endpoints=endpoints or configured,
        ticket_keys=tuple(SigningKey(key_id(raw), raw) for raw in tickets.members()),
        publisher_keys=tuple(SigningKey(key_id(raw), raw) for raw in publishers.members()),
        policy=policy,
        certificate_days=settings.authority.certificate_days,
        claim_valid_hours=settings.authority.claim_valid_hours,
        lists=(*tickets.read(), *publishers.read(), *helper.lists),
    )


def ticket_ring(settings: Settings) -> Keyring:
    """The keys that sign wake-ups."""
    folder = settings.listen.directory
    return Keyring(settings.fleet.name, TrustKind.TICKET, folder / "ticket.key", folder / "ticket-lists.json")


def publisher_ring(settings: Settings, key: Path | None = None) -> Keyring:
    """The keys that sign bundles; `key` is the file of the one that does, where it is not beside the configuration."""
    first = tuple(bytes.fromhex(public) for public in settings.fleet.publisher_keys)
    folder = settings.listen.directory
    file = key or folder.parent / "publisher" / "publisher.key"
    return Keyring(settings.fleet.name, TrustKind.PUBLISHER, file, folder / "publisher-lists.json", first)


def read_ticket_key(settings: Settings) -> bytes:
    """The key (32 raw bytes) that signs wake-ups; raises `LocalError` STATE_MISSING or STATE_CORRUPT."""
    return ticket_ring(settings).secret()


def at_each(hosts: Sequence[str], port: int) -> tuple[str, ...]:
    """`host:port` for each host."""
    return tuple(f"{host}:{port}" for host in hosts)
