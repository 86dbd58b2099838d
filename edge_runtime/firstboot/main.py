"""`fedless-edge firstboot` and `fedless-edge show`: the loop until the board has joined, and one look afterwards.

systemd is told READY when the local steps are done, so that ssh may come up with the keys; joining goes on behind it,
with pauses that fit the trouble, and ends with the agent's start. At a later start with an identity it is a matter of
a moment. `show` is started by systemd whenever the agent has told something new.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_runtime import status
from edge_runtime.firstboot import steps
from edge_runtime.firstboot.machine import Machine
from edge_runtime.firstboot.plan import SIGNALS, Standing, Trouble, diagnose, of_agent
from edge_runtime.firstboot.settings import BoardSettings
from edge_runtime.firstboot.show import show
from edge_runtime.keystore import Keystore
from edge_runtime.log import say
from edge_runtime.notify import READY, notify
from fedless.protocol.errors import FedlessError

Applied = tuple[BoardSettings, str]
AGENT_UNIT = "fedless-edge.service"
QUIET_ATTEMPTS = 3
"""So many times a network that is still coming up is no trouble worth telling: 3 pauses of 10 s."""


def set_up(
    machine: Machine, pause: Callable[[float], None] = time.sleep, attempts: int | None = None
) -> bool:
    """Set the board up and join; whether it has joined. `attempts` bounds the loop, for tests; None: until joined."""
    show(machine, Standing(joined=joined(machine), busy=True))
    if steps.clock(machine):
        say("firstboot", "clock_set")
    steps.keys(machine)
    card = steps.grow(machine)
    settings, complaint = steps.apply_settings(machine)
    notify(READY)
    steps.compiled(machine)
    return _until_joined(
        machine, lambda: steps.apply_settings(machine), (settings, complaint), card, pause, attempts
    )


def join_only(
    machine: Machine, pause: Callable[[float], None] = time.sleep, attempts: int | None = None
) -> bool:
    """Join, on a system that somebody else sets up, with the claim that lies on the boot partition; as `set_up`."""
    own = (BoardSettings(), "")
    notify(READY)
    return _until_joined(machine, lambda: own, own, None, pause, attempts)


def _until_joined(
    machine: Machine,
    again: Callable[[], Applied],
    applied: Applied,
    card: Trouble | None,
    pause: Callable[[float], None],
    attempts: int | None,
) -> bool:
    made = 0
    while attempts is None or made < attempts:
        settings, complaint = applied
        standing, done = _attempt(machine, settings.wifi is not None, complaint, card)
        made += 1
        waits = standing.trouble in (Trouble.NO_LINK, Trouble.NO_ADDRESS, Trouble.WIFI_NOT_FOUND)
        if done or not waits or made > QUIET_ATTEMPTS:
            show(machine, standing)
        if done:
            machine.run(["systemctl", "start", "--no-block", AGENT_UNIT], "")
            return True
        pause(SIGNALS[standing.trouble or Trouble.OTHER].retry_s)
        applied = again()
    return False


def _attempt(machine: Machine, wifi: bool, complaint: str, card: Trouble | None) -> tuple[Standing, bool]:  # noqa: FBT001
    """One try to join: how the board stands after it, and whether there is nothing left to do."""
    if card is not None:
        return Standing(card, joined=joined(machine)), Keystore(machine.state).enrolled
    pending = bool(steps.claim_text(machine))
    if Keystore(machine.state).enrolled and not pending:
        trouble = Trouble.SETTINGS if complaint else None
        return Standing(trouble, complaint, joined(machine)), True
    if not pending:
        return Standing(Trouble.NO_CLAIM), False
    trouble = diagnose(machine.network(wifi_wanted=wifi))
    if trouble is not None:
        trouble = Trouble.SETTINGS if complaint else trouble
        return Standing(trouble, complaint, joined(machine)), False
    try:
        outcome = steps.join(machine)
    except (FedlessError, OSError) as error:
        outcome = steps.Outcome(Trouble.OTHER, f"{type(error).__name__}: {error}")
    return Standing(outcome.trouble, outcome.detail, joined(machine)), outcome.trouble is None


def joined(machine: Machine) -> str:
    """Who it is in which fleet, or ""."""
    try:
        own = Keystore(machine.state).load()
    except FedlessError:
        return ""
    return f"{own.client_id} in fleet {own.fleet}"


def look(machine: Machine) -> Trouble | None:
    """Tell how a board that has joined stands, by the agent's last word."""
    if not joined(machine):
        return None  # the set-up tells
    told = status.agent(machine.state)
    trouble = of_agent(str(told.get("state", "")), str(told.get("reason", "")))
    settings, complaint = steps.apply_settings(machine)
    if trouble is not None:
        trouble = diagnose(machine.network(wifi_wanted=settings.wifi is not None)) or trouble
    elif complaint:
        trouble = Trouble.SETTINGS
    show(
        machine,
        Standing(trouble, complaint or str(told.get("reason", "")) * (trouble is not None), joined(machine)),
    )
    return trouble
