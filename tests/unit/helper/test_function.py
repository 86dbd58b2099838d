"""The helper as a function, asked by the aggregator's own code: signed calls, instances that share a memory."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from aggregator.authority import Authority
from aggregator.exchange import HelperExchange
from aggregator.link import SecondParty
from cloud_adapters.base import Invoker, Limit, Limits, Receipt
from fedless.helper.deployed import HelperDeployment, Keys
from fedless.helper.function import HelperFunction, made
from fedless.helper.memory import Memory
from fedless.protocol import crypto, identity
from fedless.protocol.cloud import REPLIED, answer_from_values, call_to_json
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.identity import Name, Role
from fedless.protocol.prg import Words
from fedless.protocol.secagg import calls, codec
from fedless.protocol.secagg.calls import Call, SignedCall
from fedless.protocol.secagg.helper import RefusedReports, check_mask_sum, subtract_masks
from fedless.protocol.secagg.helper_messages import CloseRequest, MaskSum
from fedless.protocol.secagg.messages import Member
from fedless.protocol.tables import Table
from tests.helper_fleet import FLEET, World

DIMENSION = 20_000
LIMIT_BYTES = 128 * 1024  # so that a sum takes three parts
MEMBERS = (1, 2, 3, 5)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Local(Invoker):
    """A platform in this process: the next of its instances gets the call."""

    platform = "local"
    small = Limit(LIMIT_BYTES, "here")
    limits: ClassVar[Limits] = Limits(Limit(10**6, "here"), small, Limit(1024, "here"), Limit(0, "here"))

    def __init__(self, *instances: HelperFunction) -> None:
        super().__init__("helper", {"memory_mb": 128, "timeout_s": 60})
        self.instances = instances
        self.bodies: list[bytes] = []
        self.answers: list[dict[str, Any]] = []
        self.before: Callable[[bytes], bytes | PeerError] = lambda body: body
        self.after: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values

    def settings(self, table: Table) -> None:
        """None."""

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        instance = self.instances[len(self.bodies) % len(self.instances)]
        self.bodies.append(body)
        sent = self.before(body)
        if isinstance(sent, PeerError):
            raise sent
        self.answers.append(self.after(json.loads(json.dumps(instance.run(sent)))))
        return Receipt(self.answered(self.answers[-1]))


class Away(Memory):
    """A memory whose server is gone."""

    def record(self, *_: Any) -> Any:
        raise PeerError(Code.BUSY, "The helper's database cannot be used.", retry_after_ms=2000)


class Cloud:
    """The world with a deployed helper of two instances, and an aggregator that knows it."""

    def __init__(self, root: Path, memory: Memory) -> None:
        self.world = World(root, now_ms(), DIMENSION)
        self.memory = memory
        self.instances = [self.instance() for _ in range(2)]
        self.platform = Local(*self.instances)
        self.folder = root / "aggregator"
        self.folder.mkdir()
        key, chain, self.leaf = self.world.certify(Role.AGGREGATOR, "main")
        (self.folder / "cert.pem").write_bytes(chain)
        (self.folder / "cert.key").write_bytes(key)
        self.key = crypto.p256_from_pem(key)
        opened = self.world.open()
        _, public = identity.verify_chain(
            [opened.helper_certificate], self.world.authority.der, FLEET, now_ms()
        )
        member = Member("main", is_device=False, public_key=public)
        self.party = SecondParty("", opened.helper_certificate, opened.helper_key, member)
        self.exchange = self.asked_by(self.platform)

    def asked_by(self, platform: Invoker) -> HelperExchange:
        return HelperExchange(self.party, platform, self.folder, FLEET, clock=now_ms, random=os.urandom)

    def instance(self, **changes: Any) -> HelperFunction:
        settings = self.world.settings
        deployment = HelperDeployment(
            FLEET, self.world.authority.pem.decode(), "unused://", settings.rules.demands, **changes
        )
        key = crypto.p256_from_pem(settings.keys.key.read_bytes())
        return made(deployment, Keys(key, bytes.fromhex(settings.keys.hpke.read_text())), self.memory)

    def request(
        self, numbers: tuple[int, ...] = MEMBERS, round_id: int = 1
    ) -> tuple[CloseRequest, list[Words]]:
        opened = self.world.open(round_id, deadline_at_ms=now_ms())
        reports = [self.world.report(opened, number) for number in numbers]
        return CloseRequest(opened, tuple(head for head, _ in reports)), [words for _, words in reports]

    def call(self, request: CloseRequest, **changes: Any) -> Call:
        call = Call(
            fleet=FLEET, helper_key_digest=crypto.sha256(self.party.key), call_id=os.urandom(16),
            expires_at_ms=now_ms() + 60_000, first_byte=0, bytes_max=1 << 20, request=request,
        )  # fmt: skip
        return replace(call, **changes)

    def signed(self, call: Call) -> SignedCall:
        return calls.sign_call(call, self.leaf, sign=lambda message: crypto.ecdsa_sign(self.key, message))

    def refusal(self, call: Call, instance: int = 0) -> Code | None:
        """By which code the helper refuses a call in a reply that it signed; None: it did not."""
        signed = self.signed(call)
        answer = answer_from_values(self.instances[instance].run(call_to_json(codec.dumps(signed))))
        assert answer.outcome == REPLIED, answer
        reply = calls.open_reply(signed, answer.reply, self.party.member)
        return Code.of(reply.code) if reply.code else None


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made_here = Cloud(tmp_path, Memory(tmp_path / "memory"))
    yield made_here
    made_here.memory.close()


async def refused(cloud: Cloud, request: CloseRequest) -> PeerError:
    with pytest.raises(PeerError) as error:
        await cloud.exchange.close(request, 20_000)
    return error.value


def check_sum(cloud: Cloud, request: CloseRequest, answer: Any, vectors: list[Words], total: int) -> None:
    """The masks taken off the masked vectors leave the numbers that the members reported."""
    assert isinstance(answer, tuple)
    head, masks = answer
    check_mask_sum(request, head, masks, cloud.party.member)
    left: Words = np.zeros_like(masks)
    for words in vectors:
        np.add(left, words, out=left)
    subtract_masks(left, masks)
    assert set(left.tolist()) == {total}


async def test_sum_comes_in_parts_from_instances_that_share_a_memory(cloud: Cloud) -> None:
    request, vectors = cloud.request()
    check_sum(cloud, request, await cloud.exchange.close(request, 20_000), vectors, sum(MEMBERS))
    assert len(cloud.platform.bodies) == 3
    assert [values["start"] for values in cloud.platform.answers] == ["cold", "cold", "warm"]
    check_sum(cloud, request, await cloud.exchange.close(request, 20_000), vectors, sum(MEMBERS))


async def test_call_that_fails_in_the_middle_goes_on_where_it_was(cloud: Cloud) -> None:
    request, vectors = cloud.request()
    lost = PeerError(Code.PLATFORM_TIMEOUT, "It took the call.")
    cloud.platform.before = lambda body: lost if len(cloud.platform.bodies) == 2 else body
    assert (await refused(cloud, request)).code is Code.HELPER_UNREACHABLE
    check_sum(cloud, request, await cloud.exchange.close(request, 20_000), vectors, sum(MEMBERS))
    assert len(cloud.platform.bodies) == 4


async def test_refused_reports_come_back_by_name(cloud: Cloud) -> None:
    request, _ = cloud.request()
    head = request.reports[2]
    forged = replace(head, signature=request.reports[0].signature)
    changed = CloseRequest(request.open, (*request.reports[:2], forged, request.reports[3]))
    answer = await cloud.exchange.close(changed, 20_000)
    assert answer == RefusedReports({head.client_id: Code.BAD_SIGNATURE})


async def test_set_below_the_helpers_minimum_is_refused(cloud: Cloud) -> None:
    request, _ = cloud.request((1, 2))
    assert (await refused(cloud, request)).code is Code.TOO_FEW


async def test_same_round_closed_twice_with_different_sets_is_refused(cloud: Cloud) -> None:
    request, _ = cloud.request()
    await cloud.exchange.close(request, 20_000)
    fewer = CloseRequest(request.open, request.reports[:3])
    assert (await refused(cloud, fewer)).code is Code.CONFLICTING_REPEAT


async def test_denied_client_is_refused_by_name(cloud: Cloud) -> None:
    request, _ = cloud.request()
    cloud.platform.instances = (cloud.instance(denied=("client-3",)),)
    answer = await cloud.exchange.close(request, 20_000)
    assert answer == RefusedReports({"client-3": Code.CERTIFICATE_REVOKED})


# -- whoever is not the aggregator


@pytest.mark.parametrize("role", [Role.DEVICE, Role.FUNCTION, Role.HELPER, Role.OPERATOR])
def test_call_of_another_role_is_refused_without_a_signature(cloud: Cloud, role: Role) -> None:
    key, _, leaf = cloud.world.certify(role, "main")
    private = crypto.p256_from_pem(key)
    call = cloud.call(cloud.request()[0])
    signed = calls.sign_call(call, leaf, sign=lambda message: crypto.ecdsa_sign(private, message))
    answer = cloud.instances[0].run(call_to_json(codec.dumps(signed)))
    assert (answer["outcome"], "reply" in answer) == (Code.WRONG_ROLE.value, False)


def test_call_of_another_fleets_aggregator_is_refused(cloud: Cloud) -> None:
    other = Authority.create(FLEET, now_ms())
    key = identity.new_key()
    leaf = other.issue(Name(FLEET, Role.AGGREGATOR, "main"), identity.make_csr(key), now_ms(), 30).chain_der[
        0
    ]
    call = cloud.call(cloud.request()[0])
    signed = calls.sign_call(call, leaf, sign=lambda message: crypto.ecdsa_sign(key, message))
    answer = cloud.instances[0].run(call_to_json(codec.dumps(signed)))
    assert (answer["outcome"], "reply" in answer) == (Code.FOREIGN_CERTIFICATE.value, False)


def test_changed_call_is_refused(cloud: Cloud) -> None:
    request, _ = cloud.request()
    signed = cloud.signed(cloud.call(request))
    wider = codec.dumps(replace(cloud.call(request), bytes_max=1 << 30))
    answer = cloud.instances[0].run(call_to_json(codec.dumps(replace(signed, content=wider))))
    assert (answer["outcome"], "reply" in answer) == (Code.BAD_SIGNATURE.value, False)


@pytest.mark.parametrize(
    "event",
    [b"", b"[]", b"{}", b'{"fedless": 9, "call": ""}', b'{"fedless": 1, "call": "?"}', {"fedless": 1}],
)
def test_malformed_call_is_refused(cloud: Cloud, event: Any) -> None:
    assert cloud.instances[0].run(event)["outcome"] == Code.MALFORMED.value


def test_replayed_call_is_refused_by_every_instance(cloud: Cloud) -> None:
    """Whoever has read a call in a platform's log gets no sum for it."""
    call = cloud.call(cloud.request()[0])
    assert cloud.refusal(call) is None
    assert [cloud.refusal(call, instance) for instance in (0, 1)] == [Code.CALL_REPEATED] * 2


@pytest.mark.parametrize("from_now_ms", [-1_000, calls.CALL_MS + calls.CLOCK_MS + 60_000])
def test_expired_call_and_one_that_would_be_good_for_long_are_refused(cloud: Cloud, from_now_ms: int) -> None:
    call = cloud.call(cloud.request()[0], expires_at_ms=now_ms() + from_now_ms)
    assert cloud.refusal(call) is Code.CALL_EXPIRED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"fleet": "other"}, Code.HELPER_KEY),
        ({"helper_key_digest": bytes(32)}, Code.HELPER_KEY),
        ({"call_id": b"short"}, Code.MALFORMED),
        ({"bytes_max": 0}, Code.MALFORMED),
        ({"first_byte": 1 << 40}, Code.OUT_OF_RANGE),
    ],
)
def test_call_for_another_helper_or_of_another_form_is_refused(
    cloud: Cloud, change: dict[str, Any], code: Code
) -> None:
    assert cloud.refusal(cloud.call(cloud.request()[0], **change)) is code


def test_larger_set_than_the_helper_takes_is_refused(cloud: Cloud) -> None:
    demands = replace(cloud.world.settings.rules.demands, reports_max=3)
    cloud.instances[0] = made(
        HelperDeployment(FLEET, cloud.world.authority.pem.decode(), "unused://", demands),
        Keys(cloud.key, bytes.fromhex(cloud.world.settings.keys.hpke.read_text())), cloud.memory,
    )  # fmt: skip
    cloud.party = replace(cloud.party, member=replace(cloud.party.member, public_key=cloud.key.public_key()))
    assert cloud.refusal(cloud.call(cloud.request()[0])) is Code.OUT_OF_RANGE


# -- whoever is not the helper


async def test_reply_of_somebody_else_is_refused_by_the_aggregator(cloud: Cloud) -> None:
    """A platform cannot have members left out, or a sum changed."""
    request, _ = cloud.request()
    other = identity.new_key()

    def forge(values: dict[str, Any]) -> dict[str, Any]:
        reply = calls.Reply(
            crypto.sha256(codec.loads(SignedCall, _call(cloud.platform.bodies[-1])).content),
            refused=(calls.RefusedReport("client-1", Code.SEED_REPEATED.value),),
        )
        forged = calls.sign_reply(reply, sign=lambda message: crypto.ecdsa_sign(other, message))
        return {**values, "reply": base64.b64encode(forged).decode()}

    cloud.platform.after = forge
    assert (await refused(cloud, request)).code is Code.BAD_SIGNATURE


async def test_reply_to_an_earlier_call_is_refused_by_the_aggregator(cloud: Cloud) -> None:
    request, _ = cloud.request()
    await cloud.exchange.close(request, 20_000)
    earlier = cloud.platform.answers[0]
    cloud.platform.after = lambda _values: earlier
    assert (await refused(cloud, request)).code is Code.BAD_CONTEXT


async def test_refusal_without_a_signature_is_a_helper_that_is_away(cloud: Cloud) -> None:
    request, vectors = cloud.request()
    cloud.platform.after = lambda values: {**values, "outcome": "conflicting_repeat", "detail": "So it is"}
    away = await refused(cloud, request)
    assert away.code is Code.HELPER_UNREACHABLE
    assert "conflicting_repeat, without a signature" in away.detail
    cloud.platform.after = lambda values: values
    check_sum(cloud, request, await cloud.exchange.close(request, 20_000), vectors, sum(MEMBERS))


def test_parts_of_two_sums_are_not_put_together(cloud: Cloud) -> None:
    assembly = calls.Assembly(cloud.request()[0])
    head = MaskSum(b"c" * 32, b"s" * 32, b"h" * 32, b"")
    assert assembly.take(calls.Reply(b"", head=head, data=bytes(4))) is None
    with pytest.raises(PeerError) as error:
        assembly.take(calls.Reply(b"", head=replace(head, sha256=b"i" * 32), data=bytes(4)))
    assert error.value.code is Code.CONFLICTING_REPEAT
    for data in (b"", bytes(1 << 20)):
        with pytest.raises(PeerError) as error:
            assembly.take(calls.Reply(b"", head=head, data=data))
        assert error.value.code is Code.WRONG_LENGTH
    with pytest.raises(PeerError) as error:
        assembly.take(calls.Reply(b""))
    assert error.value.code is Code.MALFORMED


# -- what goes wrong on the platform


@pytest.mark.parametrize(
    ("met", "code"),
    [
        (Code.PLATFORM_BUSY, Code.HELPER_UNREACHABLE),
        (Code.PLATFORM_DENIED, Code.HELPER_UNREACHABLE),
        (Code.FUNCTION_FAILED, Code.HELPER_UNREACHABLE),
        (Code.CLOCK_WRONG, Code.CLOCK_WRONG),
    ],
)
async def test_what_may_pass_is_a_helper_that_is_away_and_says_why(
    cloud: Cloud, met: Code, code: Code
) -> None:
    cloud.platform.before = lambda _body: PeerError(met, "The platform says no.")
    error = await refused(cloud, cloud.request()[0])
    assert error.code is code
    assert "The platform says no." in error.detail


async def test_request_that_the_platform_cannot_take_is_refused_by_name(cloud: Cloud) -> None:
    request, _ = cloud.request()
    many = CloseRequest(request.open, request.reports * 40)
    assert (await refused(cloud, many)).code is Code.FUNCTION_LIMIT
    assert cloud.platform.bodies == []


def test_helper_whose_memory_is_away_says_busy(cloud: Cloud) -> None:
    cloud.memory.close()
    cloud.memory = Away(cloud.folder / "memory")
    cloud.instances[0] = cloud.instance()
    call = cloud.signed(cloud.call(cloud.request()[0]))
    answer = answer_from_values(cloud.instances[0].run(call_to_json(codec.dumps(call))))
    reply = calls.open_reply(call, answer.reply, cloud.party.member)
    assert (reply.code, reply.retry_after_ms) == (Code.BUSY.value, 2000)


def _call(body: bytes) -> bytes:
    return base64.b64decode(json.loads(body)["call"])
