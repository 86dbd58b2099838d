"""The helper as it runs: gRPC over mTLS with certificates of a real authority, its memory on disk."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from fedless.helper.main import found, running
from fedless.protocol import crypto, identity
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import Role
from fedless.protocol.prg import Words
from fedless.protocol.secagg import helper
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperReport, MaskSum
from fedless.protocol.secagg.messages import Member
from fedless.protocol.secagg.ring import plan
from fedless.protocol.wire import helper as wire
from fedless.protocol.wire.clients import error_from_bytes
from fedless.v1 import helper_pb2_grpc
from tests.helper_fleet import FLEET, World

pytestmark = pytest.mark.real
NOW_MS = 1_790_000_000_000
DIMENSION = 300_000  # more than one chunk of words


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, NOW_MS, DIMENSION)


async def ask(
    world: World, port: int, request: CloseRequest, identity_of: tuple[bytes, bytes, bytes] | None
) -> tuple[MaskSum, Words] | RefusedReports:
    key, chain = (None, None) if identity_of is None else identity_of[:2]
    credentials = grpc.ssl_channel_credentials(world.authority.pem, key, chain)
    options = [("grpc.ssl_target_name_override", identity.server_name(FLEET))]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        stub = helper_pb2_grpc.HelperStub(channel)
        try:
            chunks = [chunk async for chunk in stub.Close(wire.close_request_to_pb(request), timeout=30)]
        except grpc.aio.AioRpcError as error:
            trailer = dict(error.trailing_metadata() or ())
            if "fedless-error-bin" in trailer:
                raise error_from_bytes(bytes(trailer["fedless-error-bin"])) from error
            raise
    return wire.mask_sum_from_pb(request.open, chunks)


@pytest.fixture
async def port(world: World) -> AsyncIterator[int]:
    async with running(world.settings) as found_port:
        yield found_port


@pytest.fixture
def aggregator(world: World) -> tuple[bytes, bytes, bytes]:
    return world.certify(Role.AGGREGATOR, "main")


def summed(reports: list[tuple[HelperReport, Words]]) -> Words:
    total: Words = np.zeros_like(reports[0][1])
    for _, words in reports:
        np.add(total, words, out=total)
    return total


async def test_whole_round_and_its_repeat_after_a_restart(
    world: World, aggregator: tuple[bytes, bytes, bytes]
) -> None:
    opened = world.open()
    reports = [world.report(opened, number) for number in (1, 2, 3, 5)]
    request = CloseRequest(opened, tuple(head for head, _ in reports))
    _, key = identity.verify_chain([opened.helper_certificate], world.authority.der, FLEET, NOW_MS)
    answers = []
    for _ in range(2):
        async with running(world.settings) as port:
            answer = await ask(world, port, request, aggregator)
        assert not isinstance(answer, RefusedReports)
        head, words = answer
        helper.check_mask_sum(request, head, words, Member("main", is_device=False, public_key=key))
        total = summed(reports)
        helper.subtract_masks(total, words)
        assert set(total.tolist()) == {1 + 2 + 3 + 5}
        answers.append((head, words.tobytes()))
    assert answers[0] == answers[1]


async def test_same_round_closed_twice_with_different_sets_is_refused(
    world: World, port: int, aggregator: tuple[bytes, bytes, bytes]
) -> None:
    opened = world.open()
    heads = [world.report(opened, number)[0] for number in (1, 2, 3, 4)]
    await ask(world, port, CloseRequest(opened, tuple(heads)), aggregator)
    with pytest.raises(PeerError) as refusal:
        await ask(world, port, CloseRequest(opened, tuple(heads[:3])), aggregator)
    assert refusal.value.code is Code.CONFLICTING_REPEAT


async def test_same_model_summed_twice_is_refused_by_name(
    world: World, port: int, aggregator: tuple[bytes, bytes, bytes]
) -> None:
    first = world.open(1)
    heads = tuple(world.report(first, number)[0] for number in (1, 2, 3))
    await ask(world, port, CloseRequest(first, heads), aggregator)
    second = world.open(2, model_digest=first.model_digest)
    heads = tuple(world.report(second, number)[0] for number in (3, 4, 5))
    answer = await ask(world, port, CloseRequest(second, heads), aggregator)
    assert isinstance(answer, RefusedReports)
    assert answer.reasons == {"client-3": Code.MODEL_REPEATED}


async def test_revoked_client_is_refused_by_the_helpers_own_list(
    world: World, port: int, aggregator: tuple[bytes, bytes, bytes]
) -> None:
    opened = world.open()
    heads = tuple(world.report(opened, number)[0] for number in (1, 2, 3, 4))
    (world.directory / "denied.txt").write_text("client-2  # lost\n")
    answer = await ask(world, port, CloseRequest(opened, heads), aggregator)
    assert isinstance(answer, RefusedReports)
    assert answer.reasons == {"client-2": Code.CERTIFICATE_REVOKED}
    answer = await ask(world, port, CloseRequest(opened, (heads[0], *heads[2:])), aggregator)
    assert not isinstance(answer, RefusedReports)


@pytest.mark.parametrize("role", [Role.DEVICE, Role.OPERATOR, Role.HELPER])
async def test_certificate_of_another_role_is_refused(world: World, port: int, role: Role) -> None:
    request = CloseRequest(world.open(), ())
    with pytest.raises(PeerError) as refusal:
        await ask(world, port, request, world.certify(role, "x"))
    assert refusal.value.code is Code.WRONG_ROLE


async def test_caller_without_or_with_a_foreign_certificate_does_not_get_through(
    world: World, port: int, tmp_path: Path
) -> None:
    request = CloseRequest(world.open(), ())
    foreign = World(tmp_path / "foreign", NOW_MS, DIMENSION).certify(Role.AGGREGATOR, "main")
    for caller in (None, foreign):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(world, port, request, caller)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_set_below_the_helpers_minimum_and_oversized_requests_are_refused(
    world: World, port: int, aggregator: tuple[bytes, bytes, bytes]
) -> None:
    opened = world.open()
    heads = tuple(world.report(opened, number)[0] for number in (1, 2))
    huge = plan(n=10, dimension=2**27, clip=1.0, max_examples=10)
    few = world.open(n_max=3)
    for request, code in (
        (CloseRequest(opened, heads), Code.TOO_FEW),
        (CloseRequest(replace(opened, encoding=huge), heads), Code.OUT_OF_RANGE),
        (CloseRequest(few, heads * 2), Code.OUT_OF_RANGE),
        (CloseRequest(replace(opened, helper_key=bytes(32)), heads), Code.HELPER_KEY),
    ):
        with pytest.raises(PeerError) as refusal:
            await ask(world, port, request, aggregator)
        assert refusal.value.code is code


async def test_second_helper_on_one_state_and_missing_files_are_told(world: World, port: int) -> None:
    with pytest.raises(LocalError) as error:
        async with running(world.settings):
            pass
    assert error.value.code is Code.STATE_LOCKED
    with pytest.raises(LocalError) as error:
        found(world.directory, FLEET, b"")
    assert error.value.code is Code.STATE_EXISTS
    (world.directory / "hpke.key").write_text("zz")
    other = world.settings.model_copy(update={"state": world.settings.state.model_copy()})
    moved = other.state.model_copy(update={"directory": world.directory / "other"})
    with pytest.raises(LocalError) as error:
        async with running(other.model_copy(update={"state": moved})):
            pass
    assert error.value.code is Code.STATE_CORRUPT


def test_pinned_digest_is_that_of_the_key(world: World) -> None:
    public = bytes.fromhex((world.directory / "hpke.pub").read_text())
    assert world.pin == crypto.sha256(public)
    assert ssl.PEM_cert_to_DER_cert(world.authority.pem.decode()) == world.authority.der
