"""The command `fedless-edge`: enroll, run, status, doctor, and so on; what each is for: `fedless-edge --help`.

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

from edge_runtime import board
from fedless.protocol.errors import Code, FedlessError, LocalError

DEFAULT_STATE = "/var/lib/fedless-edge"
UNIT = "/etc/systemd/system/fedless-edge.service"
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

    _looking_parsers(commands, common)
    invoke = commands.add_parser("invoke", parents=[common], help="call a function on this device")
    invoke.add_argument("name", metavar="FUNCTION")
    invoke.add_argument("event", nargs="?", default="-", metavar="JSON", help="the event; -: standard input")
    invoke.set_defaults(command=_invoke)

    _functions_parser(commands, common)
    board.add_parsers(commands, common)
    service = commands.add_parser("install-service", parents=[common], help="write and enable a systemd unit")
    service.add_argument("--unit", type=Path, default=Path(UNIT), metavar="FILE", help=f"where ({UNIT})")
    service.add_argument("--user", default="fedless", help="who runs it (fedless)")
    service.set_defaults(command=_install_service)

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


def _looking_parsers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """What only looks."""
    status = commands.add_parser("status", parents=[common], help="who, where, last wake-up, counters")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(command=_status)

    doctor = commands.add_parser("doctor", parents=[common], help="what is wrong, and what to do")
    doctor.set_defaults(command=_doctor)

    stats = commands.add_parser("stats", parents=[common], help="invocations: cold, warm, queue, run, total")
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument("--calls", type=int, default=0, metavar="N", help="list the N newest ones too")
    stats.set_defaults(command=_stats)

    why_not = commands.add_parser("why-not", parents=[common], help="why this device did not train lately")
    why_not.set_defaults(command=_why_not)

    logs = commands.add_parser("logs", help="the agent's log, from journald")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="so many of the last (50)")
    logs.set_defaults(command=_logs)


def _functions_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    functions = commands.add_parser("functions", help="the functions on this device").add_subparsers(
        required=True, metavar="COMMAND"
    )
    listing = functions.add_parser("list", parents=[common], help="versions, newest first, and how they do")
    listing.set_defaults(command=_functions_list)
    install = functions.add_parser("install", parents=[common], help="bring a signed bundle here by hand")
    install.add_argument("bundle", type=Path, metavar="BUNDLE")
    install.set_defaults(command=_functions_install)
    back = functions.add_parser("rollback", parents=[common], help="give the newest version up")
    back.add_argument("name", metavar="FUNCTION")
    back.set_defaults(command=_functions_rollback)


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
    from edge_runtime.process import own_start
    from edge_runtime.update import become

    Keystore(given.state).load()
    config = load(given.state / FILE)
    become(given.state, config.update.trial_s)
    stays = config.warm.memory_mb > 0
    names = ("keepalive", "reconnect", "rate", "queue", "drain", "stay")
    values = (*astuple(config.agent), int(stays))
    options = [text for name, value in zip(names, values, strict=True) for text in (f"--{name}", str(value))]
    participant = ["edge_runtime.participant"]
    if stays:
        participant = ["edge_runtime.linger", "--keep-s", str(config.warm.keep_s)]
        participant += ["--memory-mb", str(config.warm.memory_mb)]
    start = own_start()
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
    entries = ",".join(f"{name}:{entry.every_s}" for name, entry in config.schedule.items())
    if config.local.socket or entries:
        command += ["--", config.local.socket, entries, *start]
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


def _stats(given: argparse.Namespace) -> int:
    from contextlib import closing
    from dataclasses import asdict

    from edge_runtime.functions import Functions, statistics

    with closing(Functions(given.state)) as functions:
        calls = functions.calls()
    found = statistics(calls)
    if given.json:
        print(json.dumps({"functions": found, "calls": [asdict(c) for c in calls[: given.calls]]}, indent=1))
        return 0
    for name, figures in found.items():
        print(f"{name}: {figures['calls']:.0f} calls, {figures['failed']:.0f} failed")
        for start in ("cold", "warm"):
            if figures[start]:
                times = " ".join(
                    f"{what} {figures[f'{start}_{what}_ms_p50']:.0f}/{figures[f'{start}_{what}_ms_p95']:.0f}"
                    for what in ("queue", "start", "run", "total")
                )
                print(f"  {start} {figures[start]:.0f}: p50/p95 ms {times}")
    for call in calls[: given.calls]:
        print(f"{call.name} {call.version} {call.kind} {call.start} {call.total_ms:.0f} ms {call.outcome}")
    return 0


def _why_not(given: argparse.Namespace) -> int:
    from edge_runtime.config import FILE, load
    from edge_runtime.functions import Functions
    from edge_runtime.status import collect
    from edge_runtime.telling import fit

    functions = Functions(given.state)
    try:
        verdict = fit(load(given.state / FILE), functions)
    finally:
        functions.close()
    print("It may train now." if verdict.eligible else f"It may not train now: {verdict.reason}.")
    reasons = collect(given.state)["reasons"]
    assert isinstance(reasons, list)  # noqa: S101 - `collect` made it
    for reason in reasons:
        print(f"round {reason['round_id']}: {Code.of(reason['code']).sentence} {reason['detail']}".rstrip())
    return 0


def _logs(given: argparse.Namespace) -> int:
    command = ["journalctl", "--unit", "fedless-edge", "--output", "cat", "--lines", str(given.lines)]
    command += ["--follow"] if given.follow else []
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except FileNotFoundError as error:
        detail = "There is no journalctl here; the agent writes its lines to standard error."
        raise LocalError(Code.NOT_INSTALLED, detail) from error


def _invoke(given: argparse.Namespace) -> int:
    from edge_runtime.caller import invoke
    from edge_runtime.config import FILE, load

    path = load(given.state / FILE).local.socket
    if not path:
        detail = "[local] of edge.toml names no socket."
        raise LocalError(Code.CONFIG_INVALID, detail, fix='Add [local] with socket = "local.sock".')
    text = sys.stdin.read() if given.event == "-" else given.event
    try:
        event = json.loads(text or "null")
    except ValueError as error:
        raise LocalError(Code.MALFORMED, f"The event is not JSON: {error}.") from error
    print(json.dumps(invoke(path, given.name, event)))
    return 0


def _functions_list(given: argparse.Namespace) -> int:
    from contextlib import closing

    from edge_runtime.functions import Functions

    with closing(Functions(given.state)) as functions:
        for item in functions.versions():
            serves = functions.current(item.name) == item
            how = "given up" if item.given_up else "serves" if serves else "kept"
            proved = "proved" if item.proved else f"{item.failures} failures, not proved"
            print(f"{item.name} {item.version} {how} ({proved}) {item.entry} {item.digest[:12]}")
    return 0


def _functions_install(given: argparse.Namespace) -> int:
    from edge_runtime.install import install

    try:
        data = given.bundle.read_bytes()
    except OSError as error:
        detail = f"{given.bundle} cannot be read ({type(error).__name__})."
        raise LocalError(Code.BUNDLE_MALFORMED, detail) from error
    found = install(given.state, data)
    print(f"{found.name} version {found.version} is installed.")
    return 0


def _functions_rollback(given: argparse.Namespace) -> int:
    from contextlib import closing

    from edge_runtime.functions import Functions

    with closing(Functions(given.state)) as functions:
        serves = functions.roll_back(given.name)
    print(f"{serves.name} version {serves.version} serves.")
    return 0


def _install_service(given: argparse.Namespace) -> int:
    from edge_runtime.service import install_unit

    for line in install_unit(given.unit, given.state.absolute(), given.user):
        print(line)
    return 0


def _policy(given: argparse.Namespace) -> int:
    from edge_runtime.keystore import Keystore, policy_from, policy_values

    keys = Keystore(given.state)
    values = policy_values(keys.load().policy)
    chosen = dict(setting.partition("=")[::2] for setting in given.settings)
    if "helper_key_digest" in chosen:  # another helper: what belonged to the one before goes with it
        values |= {"helper_signing_key": "", "helper_also": []}
    values |= {name: _policy_value(name, value) for name, value in chosen.items()}
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
