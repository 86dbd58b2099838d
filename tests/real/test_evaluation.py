"""Central evaluation: a real bundle, the real TFLite runtime, a real child process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import psutil
import pytest

from aggregator.blobs import Blobs
from aggregator.evaluation import Evaluator
from fedless.protocol import bundle_format, crypto
from fedless.protocol.errors import Code, FedlessError
from fedless.protocol.manifest import GRAPH_FILE, INITIAL_FILE, MANIFEST_FILE

FUNCTION = Path(__file__).parents[2] / "examples" / "mnist" / "function-mlp"
KEY = bytes(range(32))
PUBLIC = crypto.ed25519_public(KEY)
PUBLISHERS = {crypto.key_id(PUBLIC): PUBLIC}
PARAMETERS = 101_770

pytestmark = pytest.mark.real


async def stored(tmp_path: Path, **arrays: np.ndarray) -> tuple[Blobs, bytes, bytes, bytes]:
    """Blobs with the bundle, its initial weights and a test set; and their digests."""
    blobs = Blobs(tmp_path / "blobs")
    files = {name: (FUNCTION / name).read_bytes() for name in (MANIFEST_FILE, GRAPH_FILE)}
    bundle, _ = await blobs.put_bytes(bundle_format.pack(files, KEY))
    model, _ = await blobs.put_bytes((FUNCTION / INITIAL_FILE).read_bytes())
    file = tmp_path / "test.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub thinks of its own keyword
    test_set, _ = await blobs.put_bytes(file.read_bytes())
    return blobs, bundle, model, test_set


def images(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x": random.random((count, 28, 28, 1), np.float32),
        "y": random.integers(0, 10, count).astype(np.int32),
    }


async def test_a_model_is_judged_on_every_example(tmp_path: Path) -> None:
    blobs, bundle, model, test_set = await stored(tmp_path, **images(70))  # two batches and a part of one
    evaluator = Evaluator(blobs, tmp_path / "functions", lambda: PUBLISHERS)
    checked = evaluator.check(bundle).model
    assert checked is not None
    assert checked.parameters == PARAMETERS
    found = await evaluator.evaluate(bundle, model, test_set)
    assert found.examples == 70
    assert 0 <= found.metrics["accuracy"] <= 1
    assert found.metrics["loss"] > 0
    assert await evaluator.evaluate(bundle, model, test_set) == found


async def test_a_test_set_that_does_not_fit_is_told(tmp_path: Path) -> None:
    arrays = images(5) | {"x": np.zeros((5, 7), np.float32)}
    blobs, bundle, model, test_set = await stored(tmp_path, **arrays)
    with pytest.raises(FedlessError) as failure:
        await Evaluator(blobs, tmp_path / "functions", lambda: PUBLISHERS).evaluate(bundle, model, test_set)
    assert failure.value.code is Code.DATA_SHAPE


async def test_bundle_of_an_unknown_publisher_is_refused(tmp_path: Path) -> None:
    blobs, bundle, *_ = await stored(tmp_path, **images(1))
    with pytest.raises(FedlessError) as failure:
        Evaluator(blobs, tmp_path / "functions", dict).check(bundle)
    assert failure.value.code is Code.BUNDLE_PUBLISHER


async def test_a_cancelled_evaluation_leaves_no_process(tmp_path: Path) -> None:
    blobs, bundle, model, test_set = await stored(tmp_path, **images(20_000))
    judging = asyncio.create_task(
        Evaluator(blobs, tmp_path / "functions", lambda: PUBLISHERS).evaluate(bundle, model, test_set)
    )
    others = set(psutil.Process().children())
    children: set[psutil.Process] = set()
    async with asyncio.timeout(20):
        while not children:
            children = set(psutil.Process().children()) - others
            await asyncio.sleep(0.01)
    judging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judging
    async with asyncio.timeout(10):  # the kill is sent; the process ends when the kernel comes to it
        while any(child.is_running() for child in children):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
