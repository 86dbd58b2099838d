"""A fleet's authority, a helper's directory as `fedless helper init` makes it, and clients with certificates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.authority import Authority
from fedless.helper.config import Settings, load
from fedless.helper.main import found
from fedless.protocol import crypto, identity
from fedless.protocol.crypto import Prg
from fedless.protocol.identity import Name, Role
from fedless.protocol.prg import Words
from fedless.protocol.secagg import helper
from fedless.protocol.secagg.helper_messages import HelperOpen, HelperReport
from fedless.protocol.secagg.ring import plan

FLEET = "greenhouse"


class World:
    """A fleet's authority, a helper's directory, and clients."""

    def __init__(self, root: Path, now_ms: int, dimension: int) -> None:
        self.now_ms = now_ms
        self.dimension = dimension
        self.authority = Authority.create(FLEET, now_ms)
        self.directory = root / "helper"
        self.pin = found(self.directory, FLEET, self.authority.pem)
        csr = (self.directory / "request.der").read_bytes()
        self.helper = self.authority.issue(Name(FLEET, Role.HELPER, "main"), csr, self.now_ms, 3650)
        (self.directory / "cert.pem").write_bytes(self.helper.chain_pem)
        with (self.directory / "helper.toml").open("a") as file:
            file.write(
                'denied = "denied.txt"\n[listen]\naddress = "127.0.0.1"\nport = 0\n[rules]\nminimum = 3\n'
            )
        (self.directory / "denied.txt").write_text("# nobody yet\n")
        self.clients = {n: self.certify(Role.DEVICE, f"client-{n}") for n in range(1, 7)}

    @property
    def settings(self) -> Settings:
        return load(self.directory / "helper.toml")

    def certify(self, role: Role, name: str) -> tuple[bytes, bytes, bytes]:
        """(key PEM, chain PEM, leaf DER)."""
        key = identity.new_key()
        issued = self.authority.issue(Name(FLEET, role, name), identity.make_csr(key), self.now_ms, 3650)
        return identity.key_pem(key), issued.chain_pem, issued.chain_der[0]

    def open(self, round_id: int = 1, **changes: Any) -> HelperOpen:
        opened = HelperOpen(
            round_id=round_id,
            model_version=round_id,
            model_digest=crypto.sha256(b"model %d" % round_id),
            task_digest=crypto.sha256(b"task"),
            encoding=plan(n=10, dimension=self.dimension, clip=1.0, max_examples=10),
            prg=Prg.AES,
            n_max=10,
            deadline_at_ms=self.now_ms,
            helper_certificate=self.helper.chain_der[0],
            helper_key=bytes.fromhex((self.directory / "hpke.pub").read_text()),
            signature=b"",
        )
        return helper.open_helper_round(replace(opened, **changes), sign=lambda message: message[:64])

    def report(self, opened: HelperOpen, number: int) -> tuple[HelperReport, Words]:
        key_pem, _, leaf = self.clients[number]
        private = crypto.p256_from_pem(key_pem)
        words = np.full(opened.encoding.words, number, dtype=np.uint32)
        head = helper.mask_for_helper(
            opened,
            f"client-{number}",
            leaf,
            words,
            seed=crypto.sha256(b"seed %d %d" % (opened.round_id, number)),
            sign=lambda message: crypto.ecdsa_sign(private, message),
        )
        return head, words
