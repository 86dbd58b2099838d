"""`fedless-edge firstboot|show`: the subcommands of a board's set-up, which systemd runs as root."""

from __future__ import annotations

import argparse
from pathlib import Path

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
