"""docs/adapters.md builds a seventh adapter: the text's own code, found through an entry point."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloud_adapters.registry import invoker, platforms
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.unit.cloud_adapters.conftest import GOOD, Platform, reply
from tests.unit.cloud_adapters.test_bad_platforms import CLIENT, invoke

DOCUMENT = Path(__file__).parents[3] / "docs" / "adapters.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
SETTINGS = {"memory_mb": 512, "timeout_s": 60, "function": "fn"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's, as pip leaves it."""
    pytest.importorskip("httpx")
    (tmp_path / "my_adapters").mkdir()
    (tmp_path / "my_adapters" / "tinyfaas.py").write_text(BLOCKS[0])
    info = tmp_path / "my_adapters-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-adapters\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fedless.adapters]\ntinyfaas = my_adapters.tinyfaas:TinyFaas\nbroken = json:dumps\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_adapters", raising=False)


async def test_the_documented_adapter_works(
    installed: None, platform: Callable[..., Awaitable[Platform]]
) -> None:
    assert "tinyfaas" in platforms()
    there = await platform(reply(200, GOOD, "text/plain"), reply(404))
    adapter = invoker("tinyfaas", CLIENT, {**SETTINGS, "gateway": there.url})
    receipt = await invoke(adapter)
    assert receipt.answer is not None
    assert receipt.answer.outcome == "reported"
    assert there.requests[0].startswith(b"POST /fn HTTP")
    with pytest.raises(PeerError, match=f"tinyfaas, client {CLIENT}") as caught:
        await invoke(adapter)
    assert caught.value.code is Code.FUNCTION_UNKNOWN
    await adapter.close()


def test_entry_point_that_is_no_invoker_is_refused(installed: None) -> None:
    with pytest.raises(LocalError, match="no Invoker"):
        invoker("broken", CLIENT, SETTINGS)


def test_the_documented_handler_answers() -> None:
    names: dict[str, Callable[..., str]] = {}
    exec(compile(BLOCKS[1], str(DOCUMENT), "exec"), names)
    assert json.loads(names["fn"](b"{}", {}))["outcome"] in (Code.STATE_MISSING.value, Code.MALFORMED.value)
