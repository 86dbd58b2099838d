"""Masked rounds from the first wake-up to the model: who was counted is seen in the model itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aggregator.store import masks
from fedless.protocol.errors import Code
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.shamir import SHARE_BYTES
from tests.simulation.masked_world import (
    DEADLINE_MS,
    SETUP_MS,
    UNMASK_MS,
    MaskedWorld,
    masked_task,
)

EVERYBODY = [f"client-{n}" for n in range(8)]


async def test_whole_run_in_pairwise_mode(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=3))
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 3)
    await masked_world.shared(run_id, EVERYBODY, rounds=3)
    assert [r.mode for r in info.rounds] == ["pairwise"] * 3
    assert info.rounds[0].metrics["train_examples"] == 80
    assert info.rounds[0].metrics["train_loss"] == pytest.approx(5.5, abs=1e-3)


async def test_members_weigh_as_their_examples(masked_world: MaskedWorld) -> None:
    for client in masked_world.clients:
        client.examples = 10 + 7 * client.number
    run_id = await masked_world.begin()
    await masked_world.ended(run_id)
    weights = np.array([client.examples for client in masked_world.clients], float)
    found = np.array(await masked_world.weights(run_id))
    np.testing.assert_allclose(found[:8], weights / weights.sum(), atol=2e-6)
    assert not found[8:].any()


async def test_whole_run_with_words_of_16_bits(masked_world: MaskedWorld) -> None:
    """Two bytes a parameter: everybody is in the sum once, as precisely as sixteen bits among eight can say."""
    run_id = await masked_world.begin(masked_task(secagg="bits = 16\n"))
    info = await masked_world.ended(run_id)
    assert (info.state, info.rounds[0].state) == ("finished", "committed")
    found = np.array(await masked_world.weights(run_id))
    np.testing.assert_allclose(found[:8], 1 / 8, atol=0.01)
    np.testing.assert_allclose(found[8:], 0, atol=0.01)


@pytest.mark.parametrize("step", ["check_in", "keys"])
async def test_member_that_leaves_before_it_joined_is_not_waited_for_longer_than_the_window(
    tmp_path: Path, step: str
) -> None:
    world = MaskedWorld(tmp_path, count=9)
    world.clients[3].leaves_before = step
    run_id = await world.begin(masked_task(size=9))
    await world.happened("keys_arrived", 8)
    await world.pass_time(SETUP_MS)
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client.number != 3])
    await world.close()


@pytest.mark.parametrize("step", ["roster", "shares"])
async def test_member_that_leaves_after_its_keys_is_not_in_e(tmp_path: Path, step: str) -> None:
    world = MaskedWorld(tmp_path, count=9)
    world.clients[3].leaves_before = step
    run_id = await world.begin(masked_task(size=9))
    await world.happened("shares_arrived", 8)
    await world.pass_time(SETUP_MS)
    await world.ended(run_id)
    await world.shared(run_id, [client.id for client in world.clients if client.number != 3])
    assert [len(epoch.members) for epoch in await world.key_epochs(run_id)] == [8]
    await world.close()


@pytest.mark.parametrize("step", ["inbox", "admit", "report"])
async def test_8_devices_with_2_dropouts_commit(masked_world: MaskedWorld, step: str) -> None:
    """Shared their keys, and were gone: the others' shares take their masks off (t = 6)."""
    for number in (2, 5):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 1)
    await masked_world.shared(run_id, [f"client-{n}" for n in (0, 1, 3, 4, 6, 7)])


@pytest.mark.parametrize("step", ["inbox", "admit", "report"])
async def test_8_devices_with_3_dropouts_are_abandoned_by_name(masked_world: MaskedWorld, step: str) -> None:
    for number in (2, 5, 7):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("report_arrived", 5)
    await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert info.state == "failed"
    assert info.rounds[0].reason.startswith("too_few: 5 reports of at least 6")
    [round_] = await masked_world.masked(run_id)
    masked_world.nothing_revealed(round_)
    assert await masked_world.counted("unmask_requested") == 0
    assert await masked_world.weights(run_id) == [0.0] * 16


@pytest.mark.parametrize("step", ["unmask", "answer"])
async def test_two_holders_that_never_answer(masked_world: MaskedWorld, step: str) -> None:
    for number in (2, 5):
        masked_world.clients[number].leaves_before = step
    run_id = await masked_world.begin()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)


async def test_fewer_answers_than_the_threshold_open_nothing(masked_world: MaskedWorld) -> None:
    for number in (2, 5, 7):
        masked_world.clients[number].leaves_before = "unmask"
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("unmask_answered", 5)
    await masked_world.pass_time(UNMASK_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("failed", 0)
    assert info.rounds[0].reason == "too_few: 5 holders answered, 6 are needed."
    [round_] = await masked_world.masked(run_id)
    assert round_.result is not None
    assert round_.result.sum_digest == b""
    assert all(answer.shares == b"" for answer in round_.responses)


async def test_holder_that_slept_through_the_round_is_woken_to_answer(masked_world: MaskedWorld) -> None:
    """Two did not report; one reporter leaves before its answer: one of the two, woken, makes the sixth."""
    sleeper, gone, left = (masked_world.clients[number] for number in (2, 5, 7))
    sleeper.leaves_before = gone.leaves_before = "admit"
    left.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("report_arrived", 6)
    await masked_world.pass_time(DEADLINE_MS)
    await masked_world.happened("unmask_answered", 5)
    sleeper.come_back()
    await masked_world.pass_time(5_000)
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, [f"client-{n}" for n in (0, 1, 3, 4, 6, 7)])


async def test_wrong_share_is_located_and_survived(masked_world: MaskedWorld) -> None:
    def lie(shares: bytes) -> bytes:
        return shares[:SHARE_BYTES] + bytes([0]) + bytes(31) + b"\1" + shares[2 * SHARE_BYTES :]

    masked_world.clients[0].falsify = lie
    for client in masked_world.clients[1:]:
        client.leaves_before = "answer"
    run_id = await masked_world.begin(masked_task())
    await masked_world.happened("unmask_answered", 1)  # the wrong one is among the first six
    for client in masked_world.clients[1:]:
        client.come_back()
    await masked_world.ended(run_id)
    await masked_world.shared(run_id, EVERYBODY)
    [round_] = await masked_world.masked(run_id)
    assert round_.suspects == (1,)
    assert await masked_world.counted("wrong_share") == 1


async def test_wrong_share_without_a_spare_holder_abandons_the_round(masked_world: MaskedWorld) -> None:
    masked_world.clients[0].falsify = lambda shares: shares[SHARE_BYTES:] + shares[:SHARE_BYTES]
    for number in (2, 5):
        masked_world.clients[number].leaves_before = "unmask"
    run_id = await masked_world.begin(masked_task(abandon_limit=1))
    await masked_world.happened("unmask_answered", 6)
    await masked_world.pass_time(UNMASK_MS)
    info = await masked_world.ended(run_id)
    assert info.rounds[0].reason.startswith("bad_share")
    assert info.model_version == 0


async def test_masked_evaluation_is_a_round_of_few_coordinates(masked_world: MaskedWorld) -> None:
    run_id = await masked_world.begin(masked_task(rounds=2, devices=4))
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("finished", 2)
    for round_ in info.rounds:
        assert round_.metrics["device_accuracy"] == pytest.approx(0.5, abs=1e-6)
        assert round_.metrics["device_loss"] == pytest.approx(5.5, abs=1e-3)
        assert round_.metrics["device_examples"] == 80
    found = await masked_world.masked(run_id)
    assert [(value.open.encoding.dimension, value.open.encoding.words) for value in found] == [
        (16, 18),
        (0, 3),
        (16, 18),
        (0, 3),
    ]


async def test_no_secret_is_left_after_the_commit(masked_world: MaskedWorld) -> None:
    """The answers' shares go with the commit, the sealed boxes with the key epoch; nothing comes back afterwards."""
    for client in masked_world.clients:
        client.leaves_before = "answer"
    run_id = await masked_world.begin()
    await masked_world.happened("unmask_requested")
    answers = {}
    for client in masked_world.clients:
        request = (await masked_world.masked(run_id))[0].request
        answers[client.id] = client.answer(codec.dumps(request))
        client.come_back()
    await masked_world.ended(run_id)
    [round_] = await masked_world.masked(run_id)
    assert len(round_.responses) >= 6
    assert all(answer.shares == b"" for answer in round_.responses)
    epoch = round_.open.epoch
    assert await masked_world.database.run(lambda c: masks.load_shares(c, epoch)) == {}
    for client in masked_world.clients:  # a late or repeated answer is dropped without a word
        await masked_world.rounds.post_response(client.id, round_.open.round_id, answers[client.id])
    await masked_world.runs.close()
    masked_world.database.close()
    content = b"".join(path.read_bytes() for path in masked_world.folder.glob("fedless.db*"))
    for answer in answers.values():
        assert answer[-SHARE_BYTES:] not in content


async def test_model_that_may_have_been_opened_is_not_summed_again(masked_world: MaskedWorld) -> None:
    """Shares were asked for and too few came: whoever reported refuses another sum over the same model."""
    for number in (2, 5, 7):
        masked_world.clients[number].leaves_before = "unmask"
    run_id = await masked_world.begin(masked_task(abandon_limit=2))
    await masked_world.happened("unmask_answered", 5)
    await masked_world.pass_time(UNMASK_MS)
    await masked_world.happened("round_stopped")
    for number in (2, 5, 7):
        masked_world.clients[number].come_back()

    async def all_refused() -> bool:
        return all(client.refusals == [Code.MODEL_REPEATED] for client in masked_world.clients)

    await masked_world.until(all_refused)
    await masked_world.pass_time(DEADLINE_MS)
    info = await masked_world.ended(run_id)
    assert (info.state, info.model_version) == ("failed", 0)
    assert info.reason.startswith("2 rounds in a row were abandoned, the last one: too_few: 0 reports")
