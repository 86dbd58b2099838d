"""Opening a sum, call by call: what crosses what, and what is said once it is over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from aggregator.round import Round
from aggregator.store import masks
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.messages import RoundResult
from tests.simulation.masked_world import UNMASK_MS, MaskedWorld, masked_task
from tests.simulation.world import refusal_of


async def closed_round(world: MaskedWorld) -> tuple[Round, dict[str, bytes]]:
    """A round whose reports are closed and whose driver is gone, and everybody's answer, not sent yet."""
    for client in world.clients:
        client.leaves_before = "answer"
    run_id = await world.begin(masked_task(size=len(world.clients)))
    await world.happened("unmask_requested")
    await world.runs.halt(run_id)
    [masked] = await world.masked(run_id)
    answers = {client.id: client.answer(codec.dumps(masked.request)) for client in world.clients}
    return await world.coordinator.closed(masked.open.round_id), answers


async def test_answers_that_cross_the_commit_bring_nothing_back(masked_world: MaskedWorld) -> None:
    """One comes after the sum was opened, one after the commit was recorded, one when it is over."""
    round_, answers = await closed_round(masked_world)
    rounds, round_id = masked_world.rounds, round_.terms.round_id
    sums, _ = await masked_world.coordinator.sums(round_id)
    opening = asyncio.create_task(rounds.open_sums(round_, [sums[0].total.copy()], UNMASK_MS))  # type: ignore[list-item]
    for number in range(6):
        await rounds.post_response(f"client-{number}", round_id, answers[f"client-{number}"])
    unmasked = await opening
    [decoded], change = unmasked.means, unmasked.change
    assert np.abs(decoded.mean[:8] - 1 / 8).max() < 1e-6

    await rounds.post_response("client-6", round_id, answers["client-6"])
    await masked_world.database.run(lambda c: change.record(c, round_.terms))
    await rounds.post_response("client-7", round_id, answers["client-7"])
    change.then()
    await rounds.post_response("client-7", round_id, answers["client-7"])

    [found] = await masked_world.database.run(lambda c: masks.load_masked(c, round_id))
    assert found.result is not None
    assert all(answer.shares == b"" for answer in found.responses)
    told = codec.loads(RoundResult, await rounds.result("client-7", round_id))
    assert (told, told.survivors, told.reason) == (found.result, 8, "")


async def test_result_is_said_to_members_only_and_not_before_the_end(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path, count=9)
    round_, _ = await closed_round(world)
    round_id = round_.terms.round_id
    assert await world.rounds.result("client-0", round_id) == b""
    for call in (world.rounds.result, world.rounds.unmask_request):
        assert await refusal_of(call("stranger", round_id)) is not Code.INTERNAL
        assert await refusal_of(call("client-0", round_id + 1)) is Code.UNKNOWN_ROUND
    await world.close()


async def test_given_up_is_given_up(masked_world: MaskedWorld) -> None:
    """After M6 the end names the survivors that were asked for, and no sum; a second end is the first one."""
    round_, answers = await closed_round(masked_world)
    rounds, round_id = masked_world.rounds, round_.terms.round_id
    change = await rounds.give_up(round_, Code.TOO_FEW)
    await masked_world.database.run(lambda c: change.record(c, round_.terms))
    change.then()
    first = await rounds.result("client-0", round_id)
    ended = codec.loads(RoundResult, first)
    assert (ended.survivors, ended.sum_digest, ended.reason) == (8, b"", Code.TOO_FEW.value)
    again = await rounds.give_up(round_, Code.BAD_SHARE)
    await masked_world.database.run(lambda c: again.record(c, round_.terms))
    assert await rounds.result("client-0", round_id) == first
    await rounds.post_response("client-0", round_id, answers["client-0"])
    [found] = await masked_world.database.run(lambda c: masks.load_masked(c, round_id))
    assert found.responses == ()


async def test_too_few_answers_end_the_waiting_by_name(masked_world: MaskedWorld) -> None:
    round_, answers = await closed_round(masked_world)
    sums, _ = await masked_world.coordinator.sums(round_.terms.round_id)
    before = sums[0].total.copy()
    opening = asyncio.create_task(masked_world.rounds.open_sums(round_, [sums[0].total], UNMASK_MS))  # type: ignore[list-item]
    for number in range(5):
        name = f"client-{number}"
        await masked_world.rounds.post_response(name, round_.terms.round_id, answers[name])
    await masked_world.pass_time(UNMASK_MS)
    with pytest.raises(PeerError, match="5 holders answered, 6 are needed") as trouble:
        await opening
    assert trouble.value.code is Code.TOO_FEW
    assert np.array_equal(sums[0].total, before), "it is as masked as it came"
