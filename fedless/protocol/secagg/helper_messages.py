"""*Pure.* The messages of helper mode, and exactly what of them is hashed and signed.

As in `messages.py`: every hash and signature is over `crypto.info(label, ...)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedless.protocol.crypto import Label, Prg, digest, info, sha256
from fedless.protocol.secagg.ring import RingEncoding


@dataclass(frozen=True)
class HelperOpen:
    """Aggregator to client and helper: one round in helper mode, for at most `n_max` reports.

    `helper_key`: the helper's HPKE key, X25519, 32 bytes. `helper_certificate`: its leaf, DER.
    `signature`: Ed25519 over I("helper-open", ctx, model version, deadline).
    """

    round_id: int
    model_version: int
    model_digest: bytes
    task_digest: bytes
    encoding: RingEncoding
    prg: Prg
    n_max: int
    deadline_at_ms: int
    helper_certificate: bytes
    helper_key: bytes
    signature: bytes

    @property
    def context(self) -> bytes:
        """H("helper-ctx", task, round id, model, H(encoding), PRG, w, n_max, SHA-256(helper key)): ctx."""
        return digest(
            Label.HELPER_CTX,
            self.task_digest,
            self.round_id,
            self.model_digest,
            self.encoding.hash,
            self.prg.value,
            self.encoding.bits,
            self.n_max,
            sha256(self.helper_key),
        )

    @property
    def signed(self) -> bytes:
        """("helper-open", ctx, model version, deadline)."""
        return info(Label.HELPER_OPEN, self.context, self.model_version, self.deadline_at_ms)


@dataclass(frozen=True)
class HelperReport:
    """Client to aggregator, and by it to the helper: all but the masked vector, which travels beside it.

    `envelope`: HPKE of the 32-byte seed, 80 bytes. `certificate`: the client's leaf, DER.
    `signature`: ECDSA, DER, over I("report", ctx, id, SHA-256(y), envelope).
    """

    context: bytes
    client_id: str
    certificate: bytes
    sha256: bytes
    envelope: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """("report", ctx, id, SHA-256(y), envelope)."""
        return info(Label.REPORT, self.context, self.client_id, self.sha256, self.envelope)


def envelope_info(context: bytes, client_id: str) -> bytes:
    """HPKE info of an envelope: I("helper", ctx, id)."""
    return info(Label.HELPER, context, client_id)


@dataclass(frozen=True)
class CloseRequest:
    """Aggregator to helper: the round as it was opened, and the reports whose masks are to be summed."""

    open: HelperOpen
    reports: tuple[HelperReport, ...]

    @property
    def set_digest(self) -> bytes:
        """H("close-set", ctx, [(id, SHA-256(y), envelope)]) in order of id: what "the same set" means."""
        members = sorted((report.client_id, report.sha256, report.envelope) for report in self.reports)
        return digest(Label.CLOSE_SET, self.open.context, [*members])


@dataclass(frozen=True)
class MaskSum:
    """Helper to aggregator: beside the summed streams, what they are the sum of.

    `signature`: ECDSA, DER, by the helper's certificate key, over I("mask-sum", ctx, set, SHA-256(sum)).
    """

    context: bytes
    set_digest: bytes
    sha256: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """("mask-sum", ctx, digest of the set, SHA-256 of the sum's bytes)."""
        return info(Label.MASK_SUM, self.context, self.set_digest, self.sha256)
