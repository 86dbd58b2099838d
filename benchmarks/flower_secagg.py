"""Flower's SecAgg+ at the same numbers, by its own code: run by `bench_secagg.py --flower PYTHON`.

PYTHON is an interpreter of a separate environment with flwr 1.41 (its dependencies clash with ours). The client's
stages and the server's unmask stage are called as Flower calls them; messages between them are handed over in memory.
Prints one JSON object: CPU seconds of one thread. What is unmasked is a vector of zeros: the time is the same.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import flwr
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.task_identity import TaskIdentity

STAGES = vars(
    import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
)  # a function hides the module


def states_after_sharing(n: int, threshold: int) -> tuple[list[Any], dict[int, list[tuple[int, bytes]]]]:
    """Clients after stage 1, and the sealed shares for each."""
    configs: dict[str, Any] = {
        Key.SAMPLE_NUMBER: n,
        Key.SHARE_NUMBER: n,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: 1.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 100.0,
    }
    states = [STAGES["SecAggPlusState"]() for _ in range(n)]
    public = {}
    for number, state in enumerate(states, start=1):
        state.nid = number
        keys = STAGES["_setup"](state, configs)
        public[str(state.nid)] = (keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2])
    sealed: dict[int, list[tuple[int, bytes]]] = {state.nid: [] for state in states}
    for state in states:
        sent = STAGES["_share_keys"](state, public)
        for to, box in zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True):
            sealed[to].append((state.nid, box))
    return states, sealed


def stage_2(state: Any, boxes: list[tuple[int, bytes]], vector: np.ndarray[Any, Any]) -> float:  # noqa: ANN401 - Flower's state
    """Seconds of one client's stage 2: open the shares, quantise, mask."""
    configs = {Key.SOURCE_LIST: [nid for nid, _ in boxes], Key.CIPHERTEXT_LIST: [box for _, box in boxes]}
    start = time.process_time()
    STAGES["_collect_masked_vectors"](state, configs, 50, ndarrays_to_parameters([vector]))
    return time.process_time() - start


class Grid:
    """Answers the server's requests for shares as the clients do."""

    def __init__(self, states: list[Any]) -> None:
        self.states = {state.nid: state for state in states}

    def send_and_receive(self, messages: list[Any], timeout: float | None) -> list[Any]:  # noqa: ARG002 - Flower's name
        """The clients' answers."""
        replies = []
        for message in messages:
            nid = message.metadata.dst_node_id
            record = next(iter(message.content.config_records.values()))
            answer = STAGES["_unmask"](self.states[nid], record)
            content = SimpleNamespace(config_records=dict.fromkeys(message.content.config_records, answer))
            metadata = SimpleNamespace(src_node_id=nid)
            replies.append(SimpleNamespace(content=content, metadata=metadata, has_error=lambda: False))
        return replies


def stage_3(states: list[Any], absent: int, threshold: int, dimension: int) -> float:
    """Seconds of the server's unmask stage, the clients' small answers included."""
    everyone = {state.nid for state in states}
    work = WorkflowState()
    work.sampled_node_ids = everyone
    work.active_node_ids = {nid for nid in everyone if nid > absent}
    work.threshold = threshold
    work.clipping_range, work.quantization_range, work.mod_range = 1.0, 1 << 22, 1 << 32
    work.nid_to_neighbours = {nid: set(everyone) for nid in everyone}
    work.nid_to_publickeys = {state.nid: [state.pk1, state.pk2] for state in states}
    work.aggregate_ndarrays = [np.ones(1, dtype=np.int64), np.zeros(dimension, dtype=np.int64)]
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    context = SimpleNamespace(
        state=SimpleNamespace(config_records={MAIN_CONFIGS_RECORD: {WorkflowKey.CURRENT_ROUND: 1}}),
        strategy=SimpleNamespace(aggregate_fit=lambda *_: (None, {})),
        history=None,
    )
    workflow = SecAggPlusWorkflow(num_shares=len(states), reconstruction_threshold=threshold)
    start = time.process_time()
    done = workflow.unmask_stage(Grid(states), context, work)
    seconds = time.process_time() - start
    assert done is not False
    return seconds


def main() -> None:
    """`flower_secagg.py CLIENTS DIMENSION ABSENT THRESHOLD`."""
    n, dimension, absent, threshold = (int(text) for text in sys.argv[1:5])
    states, sealed = states_after_sharing(n, threshold)
    update = np.random.default_rng(1).normal(0, 0.1, dimension)
    client = stage_2(states[-1], sealed[states[-1].nid], update)
    for state in states[:-1]:
        stage_2(state, sealed[state.nid], np.zeros(1))
    server = stage_3(states, absent, threshold, dimension)
    print(
        json.dumps({"version": flwr.__version__, "client_s": round(client, 3), "server_s": round(server, 3)})
    )


if __name__ == "__main__":
    main()
