"""Secure aggregation's cost: mask expansion, the client, the aggregator's unmasking, the helper.

`python benchmarks/bench_secagg.py [--quick] [--flower PYTHON] > secagg.json`. Times are CPU seconds of one thread, as
`openssl speed` counts them, so that a busy machine does not change the ratios. Sums are checked to be exact. A cohort
of each size is set up once and unmasked as often as the selection has such cohorts; the code timed is
what a driver calls, without network and disk. `--quick` leaves out 1,000 clients.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from aggregator.unmasking import Change, Turns, Unmasked  # noqa: E402
from benchmarks.harness import finish, middle, say  # noqa: E402
from fedless.protocol import crypto  # noqa: E402
from fedless.protocol.crypto import Prg  # noqa: E402
from fedless.protocol.prg import Words, apply_streams, expand  # noqa: E402
from fedless.protocol.secagg import client, epochs, helper, ring, server  # noqa: E402
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport, envelope_info  # noqa: E402
from fedless.protocol.secagg.keys import pair_seed, self_mask_seed, slot_secrets  # noqa: E402
from fedless.protocol.secagg.messages import UnmaskResponse  # noqa: E402
from fedless.protocol.secagg.server import ServerRound  # noqa: E402
from fedless.protocol.secagg.state import ClientState  # noqa: E402
from tests.secagg_fleet import (  # noqa: E402
    NOW_MS,
    Fleet,
    aggregator_sign,
    certificate_of,
    chain_key,
    client_sign,
    verify_aggregator,
    verify_member,
)

MILLION = 1_000_000
CCS17_S = {500: {10: 62.0, 30: 143.0}, 1000: {10: 180.0, 30: 414.0}}
"""Server seconds for 100k entries, Bonawitz et al. 2017, table of the server's running time, as quoted by others."""
GOALS_S = {10: 2.0, 30: 5.0}
"""Absent per cent -> CPU seconds of one core for 1,000 clients."""


def openssl_gb_s() -> float:
    """AES-256-CTR of OpenSSL's own measurement, one process, blocks of 16 KiB."""
    argv = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-256-ctr"]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return float(re.findall(r"([\d.]+)k\s*$", text)[-1]) * 1000 / 1e9


def expansion() -> dict[str, float]:
    """GB/s of streams added to a vector of a million words, 99 seeds, median of five."""
    seeds = [crypto.sha256(b"%d" % number) for number in range(99)]
    words: Words = np.zeros(MILLION, dtype=np.uint32)
    found = {}
    for prg in Prg:
        times = []
        for _ in range(5):
            start = time.process_time()
            apply_streams(words, prg, plus=seeds)
            times.append(time.process_time() - start)
        found[prg.value] = words.nbytes * len(seeds) / middle(times, 6) / 1e9
    return found


def cohort(n: int, slots: int = 1) -> Fleet:
    """A cohort after M3."""
    say(f"setting up a cohort of {n}")
    return Fleet(n, slots=slots).set_up()


def client_seconds(fleet: Fleet, dimension: int) -> dict[str, float]:
    """What one client spends on a masked round of `dimension` parameters."""
    encoding = ring.plan(n=fleet.n, dimension=dimension, clip=1.0, max_examples=100)
    opened = dataclasses.replace(fleet.opening(encoding), slot=0)
    epoch = fleet.server
    context = opened.context(epoch.sealed_roster.hash, epoch.active_hash)
    opened = dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))
    update = np.random.default_rng(1).normal(0, 0.1, dimension).astype(np.float32)
    start = time.process_time()
    state = client.accept_round(
        fleet.states[1],
        opened,
        model_digest=opened.model_digest,
        task_digest=opened.task_digest,
        verify_aggregator=verify_aggregator,
    )
    words = ring.encode(encoding, update, 50, {}, bytes(32))
    encoded = time.process_time()
    client.mask_report(state, opened, words, sign=client_sign(1))
    masked = time.process_time()
    return {"encode_ms": (encoded - start) * 1e3, "mask_ms": (masked - encoded) * 1e3}


def setup_seconds(n: int, slots: int) -> dict[str, float]:
    """What one client spends on the set-up of a key epoch: M0, and M1 to M2."""
    fleet = Fleet(n, slots=slots)
    start = time.process_time()
    fleet.offer(1)
    offered = time.process_time()
    for index in range(2, n + 1):
        fleet.offer(index)
    fleet.make_roster()
    begun = time.process_time()
    fleet.share(1)
    return {"keys_ms": (offered - start) * 1e3, "shares_ms": (time.process_time() - begun) * 1e3}


def masked_sum(fleet: Fleet, context: bytes, words: int, reporting: list[int]) -> Words:
    """The sum of the masked vectors of `reporting`, each of whom reported zeros, without masking one by one.

    Pair masks inside the set cancel. What is left is made from the clients' keys: self masks, and pairs with those
    who are absent.
    """
    entries = fleet.server.sealed_roster.entries
    absent = [index for index in fleet.server.members if index not in reporting]
    plus: list[bytes] = []
    minus: list[bytes] = []
    for index in reporting:
        own = slot_secrets(chain_key(index, fleet.epoch), 0)
        plus.append(self_mask_seed(own.self_seed, context, index))
        agree = crypto.x25519_agreement(own.mask_private)
        for peer in absent:
            seed = pair_seed(agree, entries[peer - 1].mask_keys[0], context, index, peer)
            (plus if peer > index else minus).append(seed)
    total: Words = np.zeros(words, dtype=np.uint32)
    apply_streams(total, Prg.AES, plus, minus)
    return total


def closed_round(fleet: Fleet, dimension: int, percent: int) -> tuple[ServerRound, Words, Words]:
    """A cohort's round with M6 signed, the sum of its masked vectors, and the sum that is under the masks.

    `percent` of the members are absent; each of the others reports the same update.
    """
    away = fleet.n * percent // 100
    reporting = [index for index in fleet.server.members if index > away]
    encoding = ring.plan(n=fleet.n, dimension=dimension, clip=1.0, max_examples=100)
    opened = dataclasses.replace(fleet.opening(encoding), slot=0)
    context = opened.context(fleet.server.sealed_roster.hash, fleet.server.active_hash)
    signed = dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))
    reports = tuple(server.Reported(index, bytes(32)) for index in reporting)
    _, round_ = server.close_reports(
        fleet.server, ServerRound(signed, context, reports), sign=aggregator_sign
    )
    update = np.random.default_rng(1).normal(0, 0.1, dimension).astype(np.float32)
    plain = ring.encode(encoding, update, 50, {}, bytes(32)) * np.uint32(len(reporting))
    return round_, masked_sum(fleet, context, encoding.words, reporting) + plain, plain


def answers(fleet: Fleet, round_: ServerRound) -> list[UnmaskResponse]:
    """M7 of the first t holders that reported."""
    assert round_.request is not None
    responses = []
    for reported in round_.reports[: fleet.server.sealed_roster.threshold]:
        state = with_report(fleet, reported.index, round_.context)
        responses.append(client.answer_unmask(state, round_.request, verify_aggregator=verify_aggregator)[1])
    return responses


def unmasking(cohorts: list[Fleet], dimension: int, percent: int) -> dict[str, float]:
    """The aggregator's seconds for one selection: what its `unmasking` does for each cohort, then the whole mean.

    `accept_s`: shares come in; `secrets_s`: secrets and seeds; `streams_s`: masks off; `finish_s`: decoded, hashed and
    signed; `mean_s`: over all cohorts.
    """
    spent = dict.fromkeys(("accept_s", "secrets_s", "streams_s", "finish_s", "mean_s"), 0.0)
    means = []
    for fleet in cohorts:
        round_, total, plain = closed_round(fleet, dimension, percent)
        responses = answers(fleet, round_)
        marks = [time.process_time()]
        for response in responses:
            round_ = server.accept_response(fleet.server, round_, response)
        marks.append(time.process_time())
        round_, recovery = server.recover(fleet.server, round_)
        marks.append(time.process_time())
        server.remove_masks(round_, recovery, total)
        marks.append(time.process_time())
        means.append(server.finish(fleet.server, round_, total, sign=aggregator_sign)[2])
        marks.append(time.process_time())
        assert np.array_equal(total, plain)
        for name, began, ended in zip(spent, marks, marks[1:], strict=False):
            spent[name] += ended - began
    start = time.process_time()
    weight = Unmasked(tuple(means), Change(lambda *_: None, lambda: None)).whole.weight
    spent["mean_s"] = time.process_time() - start
    assert np.isclose(weight, sum(mean.weight for mean in means))
    return {**spent, "total_s": sum(spent.values())}


def together(cohorts: list[Fleet], dimension: int, percent: int) -> dict[str, float]:
    """Secrets and streams of one selection on the wall clock: one cohort after another, and all at once.

    At once is as the driver does it (`aggregator.unmasking.Turns`). `loop_late_ms`: the longest that the loop itself
    came late meanwhile. Streams leave Python's lock, key agreements do not. A busy machine changes both figures.
    """
    closed = []
    for fleet in cohorts:
        round_, total, plain = closed_round(fleet, dimension, percent)
        for response in answers(fleet, round_):
            round_ = server.accept_response(fleet.server, round_, response)
        closed.append((fleet, round_, total, plain))

    start = time.perf_counter()
    for fleet, round_, total, plain in closed:
        server.remove_masks(round_, server.recover(fleet.server, round_)[1], copy := total.copy())
        assert np.array_equal(copy, plain)
    alone_s = time.perf_counter() - start

    turns = Turns()

    async def open_one(fleet: Fleet, round_: ServerRound, total: Words) -> None:
        _, recovery = await turns.recover(fleet.server, round_)
        await turns.remove_masks(round_, recovery, total)

    async def at_once() -> tuple[float, float]:
        watch = asyncio.create_task(lateness())
        start = time.perf_counter()
        await asyncio.gather(*(open_one(*each[:3]) for each in closed))
        spent_s = time.perf_counter() - start
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        return spent_s, late[0]

    late = [0.0]

    async def lateness() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late[0] = max(late[0], time.perf_counter() - before - 0.001)

    spent_s, late_s = asyncio.run(at_once())
    assert all(np.array_equal(total, plain) for _, _, total, plain in closed)
    return {
        "one_after_another_s": alone_s, "at_once_s": spent_s, "at_once_to_one_after_another": spent_s / alone_s,
        "loop_late_ms": late_s * 1e3,
    }  # fmt: skip


def with_report(fleet: Fleet, index: int, context: bytes) -> ClientState:
    """The state of a member that reported."""
    epoch = fleet.states[index].epochs[0]
    slot = dataclasses.replace(epoch.slots[0], context=context, report_sha256=bytes(32))
    return fleet.states[index].with_epoch(epoch.with_slot(slot))


def helper_seconds(n: int, dimension: int) -> dict[str, float]:
    """Helper mode: one client, and the helper's work for a set of `n`."""
    private = crypto.sha256(b"hpke")
    opened = helper.open_helper_round(
        HelperOpen(
            round_id=1,
            model_version=1,
            model_digest=bytes(32),
            task_digest=bytes(32),
            encoding=ring.plan(n=n, dimension=dimension, clip=1.0, max_examples=100),
            prg=Prg.AES,
            n_max=n,
            deadline_at_ms=0,
            helper_certificate=b"",
            helper_key=crypto.x25519_public(private),
            signature=b"",
        ),
        sign=aggregator_sign,
    )
    reports = []
    times = []
    empty = ring.plan(n=n, dimension=0, clip=1.0, max_examples=100)
    for number in range(1, n + 1):
        # Only the first few clients mask whole vectors: the helper never sees them.
        whole = number <= 3
        words: Words = (
            np.zeros(opened.encoding.words, dtype=np.uint32) if whole else np.zeros(1, dtype=np.uint32)
        )
        client_id = f"client-{number:05d}"
        certificate = certificate_of(client_id, number)
        start = time.process_time()
        target = opened if whole else dataclasses.replace(opened, encoding=empty)
        head = helper.mask_for_helper(
            target,
            client_id,
            certificate,
            words,
            seed=crypto.sha256(b"z%d" % number),
            sign=client_sign(number),
        )
        times.append(time.process_time() - start)
        if not whole:
            head = resealed(opened, head, number)
        reports.append(head)
    request = CloseRequest(opened, tuple(reports))
    start = time.process_time()
    decided = helper.close_set(
        request, helper.HelperRules(), None, hpke_private=private, at_ms=NOW_MS, verify_member=verify_member
    )
    checked = time.process_time()
    assert isinstance(decided, helper.Closing)
    words = helper.sum_masks(decided, opened, noise_seed=bytes(32))
    done = time.process_time()
    assert np.array_equal(
        words[:4],
        sum((expand(Prg.AES, s, 4, 32) for s in decided.stream_seeds), start=np.zeros(4, np.uint32)),
    )
    return {
        "client_mask_ms": middle(times[:3], 6) * 1e3,
        "helper_check_s": checked - start,
        "helper_streams_s": done - checked,
    }


def resealed(opened: HelperOpen, head: HelperReport, number: int) -> HelperReport:
    """The head as for the real context."""
    seed = crypto.sha256(b"z%d" % number)
    envelope = crypto.hpke_seal(opened.helper_key, envelope_info(opened.context, head.client_id), seed)
    head = dataclasses.replace(head, context=opened.context, envelope=envelope)
    return dataclasses.replace(head, signature=client_sign(number)(head.signed))


def beside_flower(python: str) -> dict[str, Any]:
    """The same round, 50 clients, a million parameters, 5 absent, t = 35, by Flower's code and by ours."""
    script = str(ROOT / "benchmarks" / "flower_secagg.py")
    say("Flower's SecAgg+, about half a minute")
    argv = [python, script, "50", str(MILLION), "5", "35"]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    theirs: dict[str, Any] = json.loads(text.splitlines()[-1])
    fleet = cohort(50)
    ours = client_seconds(fleet, MILLION)
    return {
        "flower": theirs,
        "client_s": round((ours["encode_ms"] + ours["mask_ms"]) / 1e3, 3),
        "server_s": round(unmasking([fleet], MILLION, 10)["total_s"], 3),
    }


def rounded(values: dict[str, float], digits: int = 3) -> dict[str, float]:
    """Figures as they are shown."""
    return {name: round(value, digits) for name, value in values.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no 1000 clients")
    parser.add_argument("--flower", metavar="PYTHON", help="an interpreter with flwr 1.41, to compare with")
    arguments = parser.parse_args()
    quick = arguments.quick
    reference = openssl_gb_s()
    rates = expansion()
    say(f"openssl {reference:.2f} GB/s; streams {rates}")
    hundred = cohort(100)
    figures: dict[str, Any] = {
        "openssl_aes_256_ctr_gb_s": round(reference, 2),
        "expand_and_add_gb_s": rounded(rates, 2),
        "ratio_to_openssl": round(rates[Prg.AES.value] / reference, 3),
        "client_1m_parameters": {"cohort_of_100": rounded(client_seconds(hundred, MILLION))},
        "client_setup_100_members_16_slots": rounded(setup_seconds(100, 16)),
    }
    figures["client_1m_parameters"]["note"] = (
        "1,000 clients are ten cohorts of 100: the same time for each client"
    )
    for clients in (500,) if quick else (500, 1000):
        sizes = epochs.cohort_sizes(clients)
        fleets = {size: hundred if size == hundred.n else cohort(size) for size in set(sizes)}
        sized = [fleets[size] for size in sizes]
        for percent, goal_s in GOALS_S.items():
            whole = unmasking(sized, 100_000, percent)
            reference_s = CCS17_S[clients][percent]
            figures[f"unmask_100k_{clients}_clients_{percent}_percent_absent"] = {
                **rounded(whole), "cohorts": sizes, "ccs17_s": reference_s,
                "ratio_to_ccs17": round(whole["total_s"] / reference_s, 4), "goal_s": goal_s,
                "wall_clock": {"cores": os.cpu_count(), **rounded(together(sized, 100_000, percent))},
            }  # fmt: skip
    figures["unmask_1m_100_clients_10_percent_absent"] = rounded(unmasking([hundred], MILLION, 10))
    figures["helper_1m"] = {"clients": 100, **rounded(helper_seconds(100, MILLION))}
    if not quick:
        figures["helper_1m_1000"] = {"clients": 1000, **rounded(helper_seconds(1000, MILLION))}
    if arguments.flower:
        figures["flower_50_clients_1m_5_absent"] = beside_flower(arguments.flower)
    finish("secagg", **figures)


if __name__ == "__main__":
    main()
