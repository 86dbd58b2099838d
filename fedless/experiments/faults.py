"""Faults on purpose: devices that are killed in the middle of a round, and started again after it.

`run` shows each event of a run to `Dropouts`. A killed device loses its agent, participant and training instance at
once, as in a power cut; its state directory stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedless.experiments.config import Dropout
from fedless.experiments.fleet import LocalFleet


class Dropouts:
    """Performs the dropouts. `number_of` gives a round's number from its id; `say` tells what was done."""

    def __init__(
        self,
        fleet: LocalFleet,
        wanted: Sequence[Dropout],
        number_of: Callable[[int], int],
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._number_of = number_of
        self._say = say
        self._wanted = {(fleet.clients[one.client - 1].client_id, one.round) for one in wanted}
        self._clients = {client_id for client_id, _ in self._wanted}
        self._down: dict[str, int] = {}

    def take(self, event: Any) -> None:  # noqa: ANN401 - operator.proto's RunEvent
        """Kill who checked in to its round; start again whose round has ended."""
        if event.event == "client_checked_in" and event.client_id in self._clients - self._down.keys():
            number = self._number_of(event.round_id)
            if (event.client_id, number) in self._wanted:
                self._wanted.remove((event.client_id, number))
                self._fleet.kill_device(event.client_id)
                self._down[event.client_id] = event.round_id
                self._say(f"round {number}: {event.client_id} is killed, as the experiment says")
        if event.event in {"model_committed", "round_stopped"}:
            for client_id in [name for name, round_id in self._down.items() if round_id == event.round_id]:
                del self._down[client_id]
                self._fleet.start_agent(client_id)
