"""*Pure.* What a client demands of a masked round. Stored on the device; no server can talk it down.

The first enrollment may fill blanks; later remote changes may only tighten (`tighten`); loosening is done on
the device (`fedless-edge policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedless.protocol.crypto import KEY_BYTES, sha256
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode, PolicyMessage
from fedless.protocol.secagg.epochs import MINIMUM_COHORT, Trust, threshold


@dataclass(frozen=True)
class Policy:
    """A client's own rules.

    `minimum_cohort`: members of a masked cohort at least. `minimum_threshold`: holders that must agree at
    least (0: only what `trust` demands for the cohort's size). `modes`: allowed modes; plain rounds need
    `Mode.PLAIN` in it. `count_functions`: whether cloud functions count towards the minimum cohort.
    `helper_key_digest`: SHA-256 of the pinned helper's HPKE key, empty when none is pinned. `minimum_noise`: the
    noise multiplier at least that must be in every masked sum before the aggregator sees it (0: none).
    `helper_signing_key`: the pinned helper's Ed25519 key, which may name its next keys; empty: the owner alone may.
    `helper_also`: further helpers that it named while one key follows another (`trust.HELPER_MEMBER_BYTES` each).
    """

    minimum_cohort: int = MINIMUM_COHORT
    minimum_threshold: int = 0
    modes: frozenset[Mode] = frozenset({Mode.PAIRWISE, Mode.HELPER})
    count_functions: bool = False
    trust: Trust = Trust.CHEATING
    helper_key_digest: bytes = b""
    minimum_noise: float = 0.0
    helper_signing_key: bytes = b""
    helper_also: tuple[bytes, ...] = ()

    @property
    def helpers(self) -> tuple[bytes, ...]:
        """The pinned helper and those that it named, as lists name them; nobody if none may name another."""
        if not self.helper_key_digest or not self.helper_signing_key:
            return ()
        return (self.helper_signing_key + self.helper_key_digest, *self.helper_also)

    def after(self, helpers: Sequence[bytes]) -> Policy:
        """The same with these helpers (`helpers`, at least one) instead of those that were pinned."""
        first, *others = helpers
        return replace(
            self,
            helper_signing_key=first[:KEY_BYTES],
            helper_key_digest=first[KEY_BYTES:],
            helper_also=tuple(others),
        )

    def pins(self, helper_key: bytes) -> bool:
        """Whether a helper with this HPKE key (32 bytes) may open what this client seals."""
        digests = {self.helper_key_digest, *(each[KEY_BYTES:] for each in self.helper_also)}
        return sha256(helper_key) in digests

    def check_mode(self, mode: Mode) -> None:
        """Raise `PeerError(POLICY)` unless rounds of this mode are allowed here."""
        if mode not in self.modes:
            allowed = ", ".join(sorted(self.modes)) or "no"
            raise PeerError(
                Code.POLICY,
                f"The round is {mode}; this client allows {allowed} rounds.",
                fix="The device's owner can allow it with `fedless-edge policy`.",
            )
        if mode is Mode.PLAIN:
            self.check_noise(0.0)

    def check_noise(self, multiplier: float) -> None:
        """Raise `PeerError(POLICY)` unless a sum with this noise multiplier will do.

        Noise that the aggregator promises to add afterwards does not count: nobody can check it.
        """
        if multiplier < self.minimum_noise:
            raise PeerError(
                Code.POLICY,
                f"Expected noise of {self.minimum_noise:g} times the sensitivity or more, found {multiplier:g}.",
                fix="Use a task with distributed noise or the helper's, and evaluate on no device.",
            )

    def check_cohort(self, n: int, devices: int, t: int) -> None:
        """Raise `PeerError` unless `n` members, `devices` of them devices, with threshold `t` will do."""
        counted = n if self.count_functions else devices
        if counted < self.minimum_cohort:
            raise PeerError(Code.POLICY, f"Expected {self.minimum_cohort} members or more, found {counted}.")
        least = max(self.minimum_threshold, threshold(n, self.trust))
        if not least <= t <= n:
            raise PeerError(Code.BAD_THRESHOLD, f"Expected {least} to {n} holders, found {t}.")


def from_enrollment(message: PolicyMessage, own: Policy | None = None) -> Policy:
    """A new client's policy: what the enrollment states, and `own` (or the defaults) where it is blank."""
    blank = own or Policy()
    told = bool(message.helper_key_digest)
    return Policy(
        minimum_cohort=message.minimum_cohort or blank.minimum_cohort,
        minimum_threshold=message.minimum_threshold or blank.minimum_threshold,
        modes=frozenset(message.modes) or blank.modes,
        count_functions=message.count_functions,
        trust=Trust(message.trust) if message.trust else blank.trust,
        helper_key_digest=message.helper_key_digest or blank.helper_key_digest,
        minimum_noise=max(message.minimum_noise, blank.minimum_noise),
        helper_signing_key=message.helper_signing_key if told else blank.helper_signing_key,
        helper_also=() if told else blank.helper_also,
    )


def tighten(own: Policy, remote: PolicyMessage) -> Policy:
    """A later remote change: the stricter of both in every field.

    Modes are intersected (an empty result keeps the client's own: a policy without any mode would be a way to
    lock a device out). Whether functions count, and which helper is pinned, is never changed from afar.
    """
    modes = own.modes & frozenset(remote.modes) if remote.modes else own.modes
    stricter_trust = Trust.CHEATING if remote.trust == Trust.CHEATING else own.trust
    return replace(
        own,
        minimum_cohort=max(own.minimum_cohort, remote.minimum_cohort),
        minimum_threshold=max(own.minimum_threshold, remote.minimum_threshold),
        modes=modes or own.modes,
        trust=stricter_trust,
        minimum_noise=max(own.minimum_noise, remote.minimum_noise),
    )
