"""What only one platform has: Lambda's REPORT line and failure shapes, tokens, OpenFaaS' callbacks; prices."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_adapters import prices
from cloud_adapters.base import Figures, scrubbed
from cloud_adapters.callbacks import Callbacks
from cloud_adapters.registry import invoker, platforms
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.unit.cloud_adapters.conftest import GOOD, Platform, reply
from tests.unit.cloud_adapters.test_bad_platforms import CLIENT, invoke, settings

Start = Callable[..., Awaitable[Platform]]
ROOT = Path(__file__).parents[3]
REPORT = """START RequestId: 1
END RequestId: 1
REPORT RequestId: 1\tDuration: 1234.56 ms\tBilled Duration: 1834 ms\tMemory Size: 1024 MB\t\
Max Memory Used: 215 MB\tInit Duration: 598.20 ms\t
"""


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")


async def aws_error(there: Platform, folder: Path) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await invoke(invoker("aws-lambda", CLIENT, settings("aws-lambda", there.url, folder)))
    return caught.value


async def test_lambda_figures_come_from_its_report(keys: None, platform: Start, tmp_path: Path) -> None:
    log = base64.b64encode(REPORT.encode()).decode()
    there = await platform(reply(200, GOOD, "application/json", f"x-amz-log-result: {log}"))
    receipt = await invoke(invoker("aws-lambda", CLIENT, settings("aws-lambda", there.url, tmp_path)))
    assert receipt.figures == Figures("platform", 1834.0, 1234.56, 598.2, 0.0, 1024, 215.0)
    cost = prices.load().cost("aws-lambda", receipt.figures, 1, 407_080)
    assert cost is not None
    assert cost.measured
    assert cost.gb_s == pytest.approx(1.834)
    assert cost.usd == pytest.approx(1.834 * 0.0000166667 + 0.0000002 + 0.00040708 * 0.09)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"errorMessage": "no module", "errorType": "Runtime"}', ["x-amz-function-error: Unhandled"]),
        (b'{"errorMessage": "no module", "errorType": "ValueError", "stackTrace": []}', []),
        (b"2026-11-23T16:00:00Z 1 Task timed out after 3.00 seconds", []),
    ],
)  # fmt: skip
async def test_lambda_fails_in_three_shapes(
    keys: None, platform: Start, tmp_path: Path, body: bytes, headers: list[str]
) -> None:
    there = await platform(reply(200, body, "application/json", *headers))
    assert (await aws_error(there, tmp_path)).code is Code.FUNCTION_FAILED


async def test_clock_skewed_signature_is_told_as_such(keys: None, platform: Start, tmp_path: Path) -> None:
    body = json.dumps(
        {"message": "Signature expired: 20260101T000000Z is now earlier than 20261123T160000Z"}
    ).encode()
    there = await platform(
        reply(403, body, "application/json", "x-amzn-errortype: InvalidSignatureException")
    )
    error = await aws_error(there, tmp_path)
    assert error.code is Code.CLOCK_WRONG
    assert "clock" in error.fix


async def test_lambda_without_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: Start
) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    there = await platform(reply(200, GOOD))
    other = settings("aws-lambda", there.url, tmp_path) | {
        "region": "eu-north-1"
    }  # its client is not yet made
    with pytest.raises(PeerError) as caught:
        await invoke(invoker("aws-lambda", CLIENT, other))
    assert caught.value.code is Code.PLATFORM_DENIED
    assert there.requests == []


async def test_google_sends_a_token_for_its_audience(platform: Start, tmp_path: Path) -> None:
    pytest.importorskip("google.auth")
    from tests.contract.peers.google import key_file

    def unsigned(claims: dict[str, Any]) -> str:
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({}, claims)
        ]
        return ".".join([*parts, "eA"])

    token = unsigned({"exp": 4_000_000_000, "iat": 1, "aud": "https://fn.example"})
    tokens = await platform(reply(200, json.dumps({"id_token": token}).encode()))
    there = await platform(reply(200, GOOD))
    account = str(key_file(tmp_path, tokens.url + "/token"))
    own = settings("google", there.url, tmp_path) | {
        "public": False, "audience": "https://fn.example", "credentials_file": account,
    }  # fmt: skip
    adapter = invoker("google", CLIENT, own)
    for _ in range(2):
        await invoke(adapter)
    await adapter.close()
    assert len(tokens.requests) == 1
    assert all(f"Bearer {token}".encode() in request for request in there.requests)


async def test_google_without_a_token_says_so(platform: Start, tmp_path: Path) -> None:
    pytest.importorskip("google.auth")
    there = await platform(reply(200, GOOD))
    own = settings("google", there.url, tmp_path) | {
        "public": False,
        "credentials_file": str(tmp_path / "none.json"),
    }
    with pytest.raises(PeerError) as caught:
        await invoke(invoker("google", CLIENT, own))
    assert caught.value.code is Code.PLATFORM_DENIED
    assert there.requests == []


async def test_azure_sends_a_token_of_its_managed_identity(
    platform: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.identity")
    body = {
        "access_token": "entra-token",
        "expires_on": "4000000000",
        "resource": "api://fn",
        "token_type": "Bearer",
    }
    tokens = await platform(reply(200, json.dumps(body).encode()))
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{tokens.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    there = await platform(reply(200, GOOD))
    own = settings("azure", there.url, tmp_path) | {"entra_scope": "api://fn/.default", "key_file": ""}
    adapter = invoker("azure", CLIENT, own)
    await invoke(adapter)
    await adapter.close()
    assert b"authorization: Bearer entra-token" in there.requests[0].replace(
        b"Authorization", b"authorization"
    )


async def test_callback_paths_are_good_once_and_for_nobody_else(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with httpx.AsyncClient() as client, Callbacks.expect(address) as callback:
        guessed = await client.post(f"http://{address}/callback/{'0' * 32}", content=b"x")
        first = await client.post(
            f"http://{address}/callback/{callback.path}", content=GOOD, headers={"X-Call-Id": "1"}
        )
        again = await client.post(f"http://{address}/callback/{callback.path}", content=b"other")
        heard = await callback.wait(1)
        assert [guessed.status_code, first.status_code, again.status_code] == [404, 202, 404]
        assert heard is not None
        assert (heard.body, heard.headers["x-call-id"]) == (GOOD, "1")
        port = int(address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_callback_that_is_too_long_is_refused(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with httpx.AsyncClient() as client, Callbacks.expect(address) as callback:
        url = f"http://{address}/{callback.path}"
        assert (await client.post(url, content=b"x" * 70_000)).status_code == 400
        assert await callback.wait(0.05) is None


def test_price_table_is_dated_and_editable(tmp_path: Path) -> None:
    table = prices.load()
    assert table.at > date(2026, 1, 1)
    assert set(table.by_platform) == set(platforms())
    other = tmp_path / "prices.toml"
    other.write_text(prices.OWN_TABLE.read_text().replace("0.0000166667", "1.0"))
    cost = prices.load(other).cost("aws-lambda", Figures("function", 1000, memory_mb=1024), 1, 0)
    assert cost is not None
    assert (round(cost.usd, 4), cost.measured) == (1.0, False)
    assert prices.load().cost("aws-lambda", Figures(), 1, 0) is None
    other.write_text("at = 'today'")
    with pytest.raises(LocalError, match="price table"):
        prices.load(other)


def test_unknown_platform_lists_the_known() -> None:
    with pytest.raises(LocalError, match="aws-lambda, azure"):
        invoker("aws-lambada", CLIENT, {})


def test_scrubbed_keeps_words_and_no_tokens() -> None:
    said = scrubbed("Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6Ij.abc denied\nfor user\tx" + "y" * 900)
    assert "eyJ" not in said
    assert "denied for user" in said
    assert len(said) <= 160


def test_lambda_call_does_not_hold_up_the_end_of_the_process(keys: None, tmp_path: Path) -> None:
    """A synchronous call may last 15 minutes; an aggregator that is stopped does not wait for it."""
    script = f"""
import asyncio, socket, sys
from cloud_adapters.registry import invoker
with socket.create_server(("127.0.0.1", 0)) as server:
    url = "http://127.0.0.1:%d" % server.getsockname()[1]
    values = {{**{settings("aws-lambda", "", tmp_path)!r}, "endpoint_url": url, "timeout_s": 900}}
    async def main():
        task = asyncio.ensure_future(invoker("aws-lambda", "fn-1", values).call(b"{{}}", 900))
        await asyncio.get_running_loop().run_in_executor(None, server.accept)
        task.cancel()
    asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=30)
