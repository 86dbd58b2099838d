"""What platforms answer when they should not: errors that name adapter, client, what was said, what to do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_adapters.base import Invoker, Receipt
from cloud_adapters.registry import invoker
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.edge_fleet import now_ms
from tests.unit.cloud_adapters.conftest import GOOD, HANG, Platform, reply

CLIENT, TICKET = "fn-1", b"signed ticket"
CLAIM = "fedless1.fleet.example:7444.abcdefghijklmnopqrstuvwxyz.zyxwvutsrqponmlkjihgfedcba.abcd"
NAMES = ("aws-lambda", "azure", "google", "knative", "openfaas", "openwhisk")
Start = Callable[..., Awaitable[Platform]]


def settings(name: str, url: str, folder: Path) -> dict[str, Any]:
    for file, text in (("key", "the-key-of-the-function-app"), ("auth", "user:the-password-of-the-gateway")):
        (folder / file).write_text(text)
    own: dict[str, dict[str, Any]] = {
        "aws-lambda": {"function": "fn", "region": "us-east-1", "mode": "sync", "endpoint_url": url},
        "azure": {"url": f"{url}/api/fedless", "key_file": str(folder / "key")},
        "google": {"url": f"{url}/fn", "mode": "http", "public": True},
        "knative": {"url": f"{url}/", "mode": "http"},
        "openfaas": {
            "gateway": url,
            "function": "fn",
            "mode": "sync",
            "basic_auth_file": str(folder / "auth"),
        },
        "openwhisk": {"api_host": url, "action": "fn", "auth_file": str(folder / "auth")},
    }
    return {"memory_mb": 512, "timeout_s": 60, **own[name]}


@pytest.fixture(params=NAMES)
async def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    made: list[Invoker] = []

    def adapter(url: str) -> Invoker:
        try:
            made.append(invoker(request.param, CLIENT, settings(request.param, url, tmp_path)))
        except LocalError as error:
            if error.code is Code.NOT_INSTALLED:
                pytest.skip(str(error))
            raise
        return made[-1]

    yield adapter
    for one in made:
        await one.close()


async def claim() -> str:
    return CLAIM


async def invoke(adapter: Invoker, within_ms: int = 20_000) -> Receipt:
    return await adapter.invoke(TICKET, claim, now_ms() + within_ms)


async def failure(adapter: Invoker, within_ms: int = 20_000) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await invoke(adapter, within_ms)
    error = caught.value
    assert f"{adapter.platform}, client {CLIENT}: " in error.detail
    for secret in (CLAIM, "zyxwvutsrqponmlkjihgfedcba", "the-key-of", "the-password-of"):
        assert secret not in str(error)
    return error


def ended(name: str) -> bytes:
    """A good answer in the platform's own form."""
    if name == "openwhisk":
        return reply(202, b'{"activationId": "a1"}')
    return reply(200, GOOD)


RECORD = reply(
    200, b'{"activationId": "a1", "duration": 120, "response": {"success": true, "result": ' + GOOD + b"}}"
)


async def test_throttling_is_repeated_with_a_fresh_claim(make: Any, platform: Start) -> None:
    given: list[str] = []

    async def fresh() -> str:
        given.append(CLAIM)
        return CLAIM

    adapter = make("http://127.0.0.1:9")
    there = await platform(reply(429, b"{}"), reply(503, b"{}"), ended(adapter.platform), RECORD)
    adapter = make(there.url)
    receipt = await adapter.invoke(TICKET, fresh, now_ms() + 30_000)
    assert receipt.attempts == 3
    assert len(given) == 3
    assert receipt.answer is not None
    assert receipt.answer.outcome == "reported"


async def test_endless_throttling_ends_before_the_deadline(make: Any, platform: Start) -> None:
    there = await platform(reply(503, b"{}"))
    begun = time.monotonic()
    error = await failure(make(there.url), within_ms=2_500)
    assert error.code is Code.PLATFORM_BUSY
    assert time.monotonic() - begun < 30
    assert len(there.requests) > 1


async def test_nobody_there(make: Any) -> None:
    error = await failure(make("http://127.0.0.1:9"), within_ms=1_500)
    assert error.code is Code.PLATFORM_UNREACHABLE


async def test_html_is_no_answer(make: Any, platform: Start) -> None:
    there = await platform(reply(200, b"<!DOCTYPE html><title>Sign in</title>", "text/html"))
    error = await failure(make(there.url))
    assert error.code is Code.PLATFORM_ANSWER
    assert len(there.requests) == 1


async def test_other_json_is_no_answer(make: Any, platform: Start) -> None:
    there = await platform(reply(200, b'{"message": "hello"}'))
    assert (await failure(make(there.url))).code is Code.PLATFORM_ANSWER


async def test_answer_of_another_version_is_named(make: Any, platform: Start) -> None:
    adapter = make("http://127.0.0.1:9")
    if adapter.platform == "openwhisk":
        pytest.skip("its answer is inside a record; tested with the others' code")
    there = await platform(reply(200, b'{"fedless": 9, "outcome": "reported"}'))
    error = await failure(make(there.url))
    assert "version 1, found 9" in error.detail
    assert "Deploy" in error.fix


async def test_truncated_body(make: Any, platform: Start) -> None:
    whole = reply(200, GOOD)
    there = await platform(whole[:-20])
    error = await failure(make(there.url))
    assert error.code in (Code.PLATFORM_ANSWER, Code.PLATFORM_UNREACHABLE)
    assert len(there.requests) == 1


async def test_redirect_to_another_host_is_not_followed(make: Any, platform: Start) -> None:
    other = await platform(reply(200, GOOD))
    there = await platform(reply(307, b"", "text/plain", f"location: {other.url}/fn"))
    error = await failure(make(there.url))
    assert error.code is Code.PLATFORM_ANSWER
    assert "not followed" in error.detail
    assert other.requests == []


async def test_gateway_cuts_after_30_seconds(make: Any, platform: Start) -> None:
    adapter = make("http://127.0.0.1:9")
    there = await platform(reply(504, b"upstream request timeout", "text/plain"))
    error = await failure(make(there.url))
    if adapter.platform != "aws-lambda":  # it has no gateway in between
        assert error.code is Code.PLATFORM_TIMEOUT
        assert "may still run" in error.fix
    assert len(there.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_wrong_credentials(make: Any, platform: Start, status: int) -> None:
    there = await platform(reply(status, b'{"message": "no"}'))
    error = await failure(make(there.url))
    assert error.code is Code.PLATFORM_DENIED
    assert "credentials" in error.fix
    assert len(there.requests) == 1


async def test_unknown_function(make: Any, platform: Start) -> None:
    there = await platform(reply(404, b'{"Message": "Function not found"}'))
    assert (await failure(make(there.url))).code is Code.FUNCTION_UNKNOWN


async def test_acknowledges_and_never_runs(make: Any, platform: Start) -> None:
    """It takes the call, and nothing ever comes back: an error at the deadline, not a hung round."""
    adapter = make("http://127.0.0.1:9")
    first = ended("openwhisk") if adapter.platform == "openwhisk" else HANG
    there = await platform(first, reply(404, b"{}"))
    begun = time.monotonic()
    error = await failure(make(there.url), within_ms=1_500)
    assert error.code is Code.PLATFORM_TIMEOUT
    assert time.monotonic() - begun < 30


async def test_endless_answer_is_cut(make: Any, platform: Start) -> None:
    adapter = make("http://127.0.0.1:9")
    if adapter.platform == "aws-lambda":
        pytest.skip("the SDK reads Lambda's answers, of at most 6 MB, whole")
    there = await platform(reply(200, b"x" * 300_000, "text/plain"))
    assert "more than" in (await failure(make(there.url))).detail


async def test_what_the_platform_echoes_is_scrubbed(make: Any, platform: Start) -> None:
    there = await platform(reply(500, f"cannot handle {CLAIM}".encode(), "text/plain"))
    assert (await failure(make(there.url))).code is Code.FUNCTION_FAILED
