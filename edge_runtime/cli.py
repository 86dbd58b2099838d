"""The command `fedless-edge`: enroll, run, status, doctor, policy, data check.

argparse and plain lines: a device has no typer and no rich. What a subcommand does not need is not imported. Every
`FedlessError` becomes one line on standard error and exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedless.protocol.errors import Code, FedlessError, LocalError

DEFAULT_STATE = "/var/lib/fedless-edge"
# The agent and the participant skip `site`: what it would add to the path is handed over, its memory is saved.
_BOOT = (
    "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); m = sys.argv.pop(1); "
    "sys.exit(__import__(m, fromlist='m').main())"
)
_LEAN = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.command(given)
    except FedlessError as error:
        print(f"fedless-edge: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    state = os.environ.get("FEDLESS_STATE", DEFAULT_STATE)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state", type=Path, default=Path(state), metavar="DIR", help=f"state directory ({state})"
    )
    parser = argparse.ArgumentParser(prog="fedless-edge", description="A device of a fedless fleet.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    enroll = commands.add_parser("enroll", parents=[common], help="join a fleet with a claim")
    enroll.add_argument(
        "--claim", metavar="FILE", help="file with the claim; default: standard input, or a prompt"
    )
    enroll.add_argument("--again", action="store_true", help="give up the identity that is here already")
    enroll.set_defaults(command=_enroll)

    run = commands.add_parser("run", parents=[common], help="wait for wake-ups and train")
    run.set_defaults(command=_run)

    status = commands.add_parser("status", parents=[common], help="who, where, last wake-up, counters")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(command=_status)

    doctor = commands.add_parser("doctor", parents=[common], help="what is wrong, and what to do")
    doctor.set_defaults(command=_doctor)

    policy = commands.add_parser("policy", parents=[common], help="what this device demands of a round")
    policy.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="for instance modes=plain,pairwise")
    policy.set_defaults(command=_policy)

    data = commands.add_parser("data", help="this device's data").add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = data.add_parser("check", parents=[common], help="compare the data with a function's manifest")
    check.add_argument(
        "function", type=Path, metavar="FUNCTION", help="function.toml, or the folder that it is in"
    )
    check.add_argument("--source", default="", metavar="NAME", help="only this data source")
    check.set_defaults(command=_data_check)
    return parser


def _enroll(given: argparse.Namespace) -> int:
    from edge_runtime.enroll import clock_complaint, enroll

    joined = enroll(given.state, _claim(given.claim), again=given.again)
    print(f"Enrolled as {joined.client_id} in fleet {joined.fleet}.")
    complaint = clock_complaint(joined.clock_ahead_ms)
    if complaint:
        print(f"fedless-edge: {complaint}", file=sys.stderr)
    return 0


def _claim(file: str | None) -> str:
    """The claim from a file, standard input or a prompt: never from the command line, where others can read it."""
    if file and file != "-":
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LocalError(
                Code.CLAIM_MALFORMED, f"{file} cannot be read ({type(error).__name__})."
            ) from error
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("Claim: ")
    return sys.stdin.readline()


def _run(given: argparse.Namespace) -> int:
    """Check everything that can be checked, then become the agent: a lean process with nothing of this one in it."""
    from dataclasses import astuple

    from edge_runtime.config import FILE, load
    from edge_runtime.keystore import Keystore

    Keystore(given.state).load()
    config = load(given.state / FILE)
    stays = config.warm.memory_mb > 0
    names = ("keepalive", "reconnect", "rate", "queue", "drain", "stay")
    values = (*astuple(config.agent), int(stays))
    options = [text for name, value in zip(names, values, strict=True) for text in (f"--{name}", str(value))]
    participant = ["edge_runtime.participant"]
    if stays:
        participant = ["edge_runtime.linger", "--keep-s", str(config.warm.keep_s)]
        participant += ["--memory-mb", str(config.warm.memory_mb)]
    paths = ":".join(path for path in sys.path if path and Path(path).exists())
    start = [sys.executable, "-I", "-S", "-c", _BOOT, paths]
    state = str(given.state.absolute())
    command = [
        *start,
        "edge_runtime.agent",
        "--state",
        state,
        *options,
        "--",
        *start,
        *participant,
    ]
    if config.local.socket:
        command += ["--", config.local.socket, *start, "edge_runtime.local_api", "--state", state]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | _LEAN)  # noqa: S606 - no shell is wanted


def _status(given: argparse.Namespace) -> int:
    from edge_runtime.status import collect, lines

    found = collect(given.state)
    print(json.dumps(found, indent=1) if given.json else "\n".join(lines(found)))
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from edge_runtime.doctor import examine

    troubles = 0
    for finding in examine(given.state):
        print(finding, flush=True)
        troubles += not finding.well
    return 1 if troubles else 0


def _policy(given: argparse.Namespace) -> int:
    from edge_runtime.keystore import Keystore, policy_from, policy_values

    keys = Keystore(given.state)
    values = policy_values(keys.load().policy)
    for setting in given.settings:
        name, _, value = setting.partition("=")
        values[name] = _policy_value(name, value)
    if given.settings:
        try:
            keys.set_policy(policy_from(values))
        except (ValueError, TypeError) as error:
            raise LocalError(
                Code.CONFIG_INVALID, f"policy: {error}.", fix="See `fedless-edge policy`."
            ) from error
    for name, value in values.items():
        print(f"{name} = {json.dumps(value)}")
    return 0


def _policy_value(name: str, text: str) -> object:
    if name == "modes":
        return sorted(part.strip() for part in text.split(",") if part.strip())
    if name == "count_functions":
        if text not in ("true", "false"):
            raise LocalError(
                Code.CONFIG_INVALID, f"policy: expected true or false for {name}, found {text!r}."
            )
        return text == "true"
    return int(text) if text.isdecimal() else text


def _data_check(given: argparse.Namespace) -> int:
    """Read each source as an instance would, against the manifest, and say what was found."""
    from edge_runtime.config import FILE, load
    from edge_runtime.data import open_dataset
    from fedless.protocol.manifest import MANIFEST_FILE, parse_bytes

    path = given.function / MANIFEST_FILE if given.function.is_dir() else given.function
    try:
        manifest = parse_bytes(path.read_bytes())
    except OSError as error:
        raise LocalError(Code.MANIFEST_INVALID, f"{path} cannot be read ({type(error).__name__}).") from error
    if manifest.model is None:
        raise LocalError(
            Code.MANIFEST_INVALID, f"The function {manifest.name} has no model, so it needs no data."
        )
    config = load(given.state / FILE)
    sources = {given.source: config.source((given.source,))} if given.source else dict(config.data)
    if not sources:
        raise LocalError(
            Code.DATA_MISSING, "No data source is described.", fix=f"Add [data.default] to {FILE}."
        )
    for name, source in sources.items():
        dataset = open_dataset(source, manifest.model, str(path.parent))
        print(f"{name}: {dataset.count} examples fit {manifest.name} version {manifest.version}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
