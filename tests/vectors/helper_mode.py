"""Vectors of helper mode: a round of four clients."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.crypto import Prg
from fedless.protocol.errors import PeerError
from fedless.protocol.prg import Words, expand
from fedless.protocol.secagg import helper
from fedless.protocol.secagg.helper_messages import (
    CloseRequest,
    HelperOpen,
    HelperReport,
    MaskSum,
    envelope_info,
)
from fedless.protocol.secagg.ring import RingEncoding
from tests.secagg_fleet import (
    END_MS,
    aggregator_sign,
    certificate_of,
    client_sign,
    counting,
)
from tests.vectors.pairwise import ENCODING, update_words

HERE = Path(__file__).parent
HELPER_PRIVATE, HELPER_SCALAR = counting(100), 999


def helper_opening(encoding: RingEncoding = ENCODING) -> HelperOpen:
    """A round for at most seven clients."""
    return helper.open_helper_round(
        HelperOpen(
            round_id=5,
            model_version=2,
            model_digest=crypto.sha256(b"model"),
            task_digest=crypto.sha256(b"task"),
            encoding=encoding,
            prg=Prg.CHACHA,
            n_max=7,
            deadline_at_ms=END_MS,
            helper_certificate=certificate_of("helper-1", HELPER_SCALAR, "helper"),
            helper_key=crypto.x25519_public(HELPER_PRIVATE),
            signature=b"",
        ),
        sign=aggregator_sign,
    )


def kept_envelopes() -> dict[str, bytes]:
    """The envelopes of the committed file, if there is one."""
    path = HERE / "helper.json"
    if not path.exists():
        return {}
    reports = json.loads(path.read_text())["reports"]
    return {report["head"]["client_id"]: bytes.fromhex(report["head"]["envelope"]) for report in reports}


def helper_report(opened: HelperOpen, number: int, kept: bytes) -> tuple[HelperReport, Words]:
    """What client `number` reports; its envelope is the kept one where that still opens to the seed."""
    seed, client_id, words = counting(number), f"client-{number:03d}", update_words(number)
    certificate = certificate_of(client_id, number)
    head = helper.mask_for_helper(opened, client_id, certificate, words, seed=seed, sign=client_sign(number))
    try:
        opens = crypto.hpke_open(HELPER_PRIVATE, envelope_info(opened.context, client_id), kept) == seed
    except PeerError:
        opens = False
    if opens:
        head = dataclasses.replace(head, envelope=kept)
        head = dataclasses.replace(head, signature=client_sign(number)(head.signed))
    return head, words


def helper_vectors() -> dict[str, Any]:
    """Four of seven clients report."""
    opened, kept = helper_opening(), kept_envelopes()
    reports = []
    heads = []
    total = np.zeros(ENCODING.words, dtype=np.uint32)
    for number in (1, 2, 4, 6):
        head, masked = helper_report(opened, number, kept.get(f"client-{number:03d}", b""))
        seed = counting(number)
        reports.append(
            {
                "encoded": update_words(number),
                "seed": seed,
                "stream_seed": helper.stream_seed(seed, opened.context),
                "masked": masked,
                "head": head,
            }
        )
        heads.append(head)
        total += masked
    request = CloseRequest(opened, tuple(heads))
    masks = np.zeros_like(total)
    for number in (1, 2, 4, 6):
        masks += expand(opened.prg, helper.stream_seed(counting(number), opened.context), len(masks), 32)
    answer = MaskSum(opened.context, request.set_digest, crypto.sha256(masks.tobytes()), b"")
    answer = dataclasses.replace(answer, signature=client_sign(HELPER_SCALAR)(answer.signed))
    return {
        "hpke_private": HELPER_PRIVATE,
        "open": opened,
        "ctx": opened.context,
        "reports": reports,
        "set_digest": request.set_digest,
        "masked_sum": total,
        "mask_sum": masks,
        "mask_sum_head": answer,
        "sum": total - masks,
    }
