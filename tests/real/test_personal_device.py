"""Personal parameters on a device: participant, real instance and store, against a fake aggregator over mTLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime import partial
from edge_runtime.config import FILE, load
from edge_runtime.functions import Functions
from edge_runtime.heads import Heads
from edge_runtime.pool import Pool
from fedless.protocol import bundle_format
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import GRAPH_FILE, MANIFEST_FILE
from fedless.protocol.messages import Action, ClientRule, Kind, Mode, Optimizer, Order, Task
from tests.edge_device import CLIENT, counters, wake
from tests.edge_fleet import FUNCTION, PARAMETERS, PUBLISHER_KEY, FakeAggregator, Fleet, RoundHere, wake_bytes

pytestmark = pytest.mark.real
OWN = 10 * 128 + 10
LAYOUT = Layout(PARAMETERS, ((PARAMETERS - OWN, OWN),))
RULE = ClientRule(Optimizer.SGD, learning_rate=0.5, local_epochs=1)
IMAGES = [[[0.5] * 28] * 28] * 2


@pytest.fixture
def task(fleet: Fleet) -> Task:
    return fleet.task(rule=RULE, holdout=0.25, personal=LAYOUT.personal)


def do(
    state: Path,
    aggregator: FakeAggregator,
    round_id: int,
    task: Task,
    kind: Kind = Kind.TRAIN,
    **changes: Any,
) -> RoundHere:
    """One round of this device."""
    ticket = aggregator.fleet.ticket(CLIENT, round_id, task, kind=kind)
    size = 4 * LAYOUT.common if kind is Kind.TRAIN else 0
    here = aggregator.open(ticket, task, **{"report_bytes": size, **changes})
    assert wake(state, wake_bytes(ticket)) == 0
    return here


def own(state: Path) -> NDArray[np.float32]:
    """The head that the device has."""
    file = Heads(state / "heads", 1 << 20).own("run-1", LAYOUT)
    assert file is not None
    return partial.from_bytes(file.read_bytes())[2]


def infer(state: Path) -> object:
    """What a program on the device is answered."""
    functions = Functions(state)
    with closing(functions), closing(Pool(state, load(state / FILE), functions)) as pool:
        return pool.invoke("mnist-mlp", {"inputs": {"x": IMAGES}}, "0").value


def test_the_head_is_trained_kept_and_used_and_head_weights_never_appear_in_a_report(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, task: Task
) -> None:
    shipped = np.frombuffer(fleet.model, "<f4")[-OWN:]
    first = do(state, aggregator, 1, task)
    assert (first.accepted, len(first.data)) == (1, 4 * LAYOUT.common)
    one = own(state)
    assert np.abs(one - shipped).max() > 1e-3
    second = do(state, aggregator, 2, task)
    two = own(state)
    assert np.abs(two - one).max() > 1e-3
    assert first.data != second.data, "the same model, but with another head"
    said = bytes(first.data + second.data)
    for numbers in (one, two, one - shipped, two - one):
        told = [row for row in numbers[:1280].reshape(-1, 4) if np.abs(row).min() > 1e-4]
        assert len(told) > 100
        assert not any(row.tobytes() in said for row in told)
    judged = do(state, aggregator, 3, task, Kind.EVALUATE).header
    assert judged is not None
    assert set(judged.sums) == {"loss", "correct", "global_loss", "global_correct"}
    assert judged.sums["loss"] != judged.sums["global_loss"]
    np.testing.assert_array_equal(own(state), two, "an evaluation changes nothing")
    assert counters(state) == {"reported": 3}


def test_a_device_without_a_head_judges_the_model_as_it_was_sent(
    aggregator: FakeAggregator, state: Path, task: Task
) -> None:
    judged = do(state, aggregator, 1, task, Kind.EVALUATE).header
    assert judged is not None
    assert judged.sums["global_loss"] == judged.sums["loss"]
    assert judged.sums["global_correct"] == judged.sums["correct"]


def test_local_inference_uses_the_head_and_the_fleet_cannot_ask_it(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, task: Task
) -> None:
    """An answer to the fleet is of the model as the fleet has it: its outputs would tell of the head.

    And a run without a personal part is served without the head of one that has some.
    """
    do(state, aggregator, 1, task)
    here = infer(state)
    order = Order(Action.INVOKE, "mnist-mlp", json.dumps({"inputs": {"x": IMAGES}}))
    ticket = aggregator.give(7, order, aggregator.fleet.bundle)
    assert wake(state, wake_bytes(ticket)) == 0
    (result,) = aggregator.results
    assert result.outcome == "done", result.detail
    plain = fleet.task(rule=RULE, mode=Mode.PLAIN)
    assert do(state, aggregator, 8, plain, report_bytes=4 * PARAMETERS).accepted == 1
    assert json.loads(result.answer) == infer(state)
    assert here != infer(state)


READS_ITS_MODEL = """
import array

def handle(event, context):
    model = array.array("f")
    with open(context.model, "rb") as file:
        model.frombytes(file.read())
    return [model[0], *model[-3:]]
"""


@pytest.fixture
def reader() -> Iterator[FakeAggregator]:
    """A fleet whose function has an entry of its own, which tells of its model."""
    fleet = Fleet()
    text = (FUNCTION / MANIFEST_FILE).read_text().replace('entry = "fedless:train"', 'entry = "main:handle"')
    files = {MANIFEST_FILE: text.encode(), GRAPH_FILE: (FUNCTION / GRAPH_FILE).read_bytes()}
    files["main.py"] = READS_ITS_MODEL.encode()
    fleet.bundle = bundle_format.pack(files, PUBLISHER_KEY)
    aggregator = FakeAggregator(fleet)
    aggregator.start()
    yield aggregator
    aggregator.stop()


def test_a_function_of_ones_own_has_the_head_in_its_model_and_the_fleet_cannot_ask_it(
    reader: FakeAggregator, tmp_path: Path
) -> None:
    """What `train` begins with is what the device's own programs work with; an answer to the fleet is of its model."""
    fleet = reader.fleet
    state = fleet.device(tmp_path / "state", CLIENT, reader.port)
    task = fleet.task(rule=RULE, holdout=0.25, personal=LAYOUT.personal)
    assert do(state, reader, 1, task).accepted == 1
    sent = np.frombuffer(fleet.model, "<f4")
    with closing(Functions(state)) as functions, closing(Pool(state, load(state / FILE), functions)) as pool:
        here = pool.invoke("mnist-mlp", None, "0").value
    assert here == [float(sent[0]), *own(state)[-3:].tolist()]
    assert here != [float(sent[0]), *sent[-3:].tolist()]
    order = Order(Action.INVOKE, "mnist-mlp", "null")
    ticket = reader.give(7, order, fleet.bundle)
    assert wake(state, wake_bytes(ticket)) == 0
    (result,) = reader.results
    assert result.outcome == "done", result.detail
    assert json.loads(result.answer) == [float(sent[0]), *sent[-3:].tolist()]


@pytest.mark.parametrize("size", [4 * PARAMETERS, 4 * (LAYOUT.common + 1), 8 * LAYOUT.common])
def test_an_aggregator_that_asks_for_the_head_gets_nothing(
    aggregator: FakeAggregator, state: Path, task: Task, size: int
) -> None:
    here = do(state, aggregator, 1, task, report_bytes=size)
    assert (here.accepted, len(here.data)) == (0, 0)
    assert counters(state) == {Code.WRONG_LENGTH.value: 1}


def test_a_revoked_device_keeps_no_head(aggregator: FakeAggregator, state: Path, task: Task) -> None:
    do(state, aggregator, 1, task)
    assert own(state).size == OWN

    def before(call: str) -> None:
        if call == "check_in":
            raise PeerError(Code.CERTIFICATE_REVOKED)

    aggregator.before = before
    do(state, aggregator, 2, task)
    assert list((state / "heads").iterdir()) == []
    assert counters(state)[Code.CERTIFICATE_REVOKED.value] == 1


def test_an_owner_who_gives_no_room_for_heads_refuses_such_tasks(
    aggregator: FakeAggregator, state: Path, task: Task
) -> None:
    with (state / "edge.toml").open("a") as file:
        file.write("[limits]\nheads_mb = 0\n")
    assert do(state, aggregator, 1, task).accepted == 0
    assert counters(state) == {Code.DISK_FULL.value: 1}
