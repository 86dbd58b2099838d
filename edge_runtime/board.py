"""`fedless-edge firstboot|show`, a board's set-up, which systemd runs as root; `fedless-edge update`, of the agent."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedless.protocol.errors import Code, LocalError

BOOT = "/boot/firmware"


def add_parsers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add them to the command line."""
    first = commands.add_parser(
        "firstboot", parents=[common], help="set this board up and join its fleet (root)"
    )
    first.add_argument(
        "--boot", type=Path, default=Path(BOOT), metavar="DIR", help=f"boot partition ({BOOT})"
    )
    first.add_argument(
        "--join-only", action="store_true", help="leave keys, disk, name and Wi-Fi to others, only join"
    )
    first.set_defaults(command=_firstboot)
    show = commands.add_parser(
        "show", parents=[common], help="tell on console, LED and boot partition (root)"
    )
    show.add_argument("--boot", type=Path, default=Path(BOOT), metavar="DIR", help=f"boot partition ({BOOT})")
    show.set_defaults(command=_show)
    update = commands.add_parser("update", help="versions of the agent").add_subparsers(
        required=True, metavar="COMMAND"
    )
    status = update.add_parser("status", parents=[common], help="which version runs, and what was given up")
    status.set_defaults(command=_update_status)
    install = update.add_parser("install", parents=[common], help="bring a signed update here by hand")
    install.add_argument("file", type=Path, metavar="FILE.update")
    install.set_defaults(command=_update_install)
    back = update.add_parser("rollback", parents=[common], help="give the present update up")
    back.set_defaults(command=_update_rollback)


def _firstboot(given: argparse.Namespace) -> int:
    from edge_runtime.firstboot.machine import Machine
    from edge_runtime.firstboot.main import join_only, set_up

    machine = Machine(boot=given.boot, state=given.state)
    return 0 if (join_only if given.join_only else set_up)(machine) else 1


def _show(given: argparse.Namespace) -> int:
    from edge_runtime.firstboot.machine import Machine
    from edge_runtime.firstboot.main import look

    look(Machine(boot=given.boot, state=given.state))
    return 0


def _update_status(given: argparse.Namespace) -> int:
    from edge_runtime.update import name, standing

    found = standing(given.state)
    trial = f", on trial (start {found.tries})" if found.trial else ""
    print(f"runs        {name(given.state, found.current)}{trial}")
    if found.current:
        print(f"before it   {name(given.state, found.before)}")
    if found.given_up:
        print(f"given up    update {found.given_up}")
    return 0


def _update_install(given: argparse.Namespace) -> int:
    from edge_runtime.keystore import Keystore
    from edge_runtime.update import stage

    publishers = Keystore(given.state).load().publishers
    try:
        with given.file.open("rb") as file:
            found = stage(given.state, file, publishers)
    except FileNotFoundError as error:
        raise LocalError(Code.STATE_MISSING, f"There is no {given.file}.") from error
    print(
        f"Version {found.version} (update {found.sequence}) is staged; it runs from the agent's next start on."
    )
    return 0


def _update_rollback(given: argparse.Namespace) -> int:
    from edge_runtime.update import name, roll_back

    print(f"{name(given.state, roll_back(given.state).current)} runs from the agent's next start on.")
    return 0
