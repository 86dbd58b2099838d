"""`fedless`: finds the subcommand, imports only that one, and turns errors into one clear message.

Every command module of this package is a typer app named `app`. An error of ours is a message on
standard error and exit status 1; `fedless --debug ...` adds the traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from fedless import __version__
from fedless.protocol.errors import Code, FedlessError, LocalError


@dataclass(frozen=True)
class Command:
    """One subcommand: its module, its line in `fedless --help`, and the extra that it needs."""

    module: str
    help: str
    extra: str = "aggregator"


OWN = {"fedless", "aggregator", "edge_runtime", "cloud_adapters"}
COMMANDS = {
    "init": Command("init", "Make a new fleet in a directory."),
    "aggregator": Command("serve", "Run the service, or install it."),
    "broker": Command("broker", "Run a broker of your own."),
    "backup": Command("backup", "Back a fleet up, while it runs."),
    "restore": Command("restore", "Make a fleet of a back-up."),
    "fleet": Command("fleet", "Let devices join, list them, revoke them."),
    "operator": Command("operators", "Say who may command the fleet: add, list, revoke."),
    "run": Command("run", "Start, watch and stop training runs."),
    "plan": Command("plan", "Say what a run would be like, before it is started."),
    "why": Command("why", "Say why a run, a round or a client went as it did."),
    "privacy": Command("privacy", "Show what each client's data was spent on."),
    "model": Command("model", "Take trained models out."),
    "function": Command("function", "Build, sign and push functions, call them on devices.", "authoring"),
    "helper": Command("helper", "Run the second party of helper mode.", "helper"),
    "image": Command("image", "Make images and packages for boards."),
    "experiment": Command("experiment", "Run a whole fleet on this machine."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `fedless`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given[:1]
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if debug else "NONE")  # its C core logs past our messages
    try:
        build(next((word for word in given if not word.startswith("-")), ""))(given, prog_name="fedless")
    except FedlessError as error:
        _end(str(error), debug=debug)
    except BrokenPipeError:  # the reader of our output went away, for instance `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last border: one line instead of a traceback
        text = f"{Code.INTERNAL.sentence} {type(error).__name__}: {error} See it with `fedless --debug ...`."
        _end(text, debug=debug)


def build(wanted: str) -> typer.Typer:
    """The command line with one subcommand imported, and the others as lines of the help."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(_options)
    for name, command in COMMANDS.items():
        if name != wanted:
            app.command(name, help=command.help)(_not_imported)
            continue
        sub = _load(name, command)
        if len(sub.registered_commands) == 1 and sub.registered_commands[0].name == name:
            app.command(name, help=command.help)(_callback(sub))
        else:
            app.add_typer(sub, name=name, help=command.help)
    return app


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it by position
    if wanted:
        typer.echo(f"fedless {__version__}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; must come first.")] = False,
) -> None:
    """Federated learning on functions-as-a-service for edge devices."""


def _load(name: str, command: Command) -> typer.Typer:
    try:
        module = importlib.import_module(f"fedless.console.{command.module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN:
            raise
        detail = f"`fedless {name}` needs {error.name}."
        raise LocalError(Code.NOT_INSTALLED, detail, fix=f"Install fedless[{command.extra}].") from error
    sub: typer.Typer = module.app
    return sub


def _callback(sub: typer.Typer) -> Callable[..., object]:
    callback = sub.registered_commands[0].callback
    assert callback is not None  # noqa: S101 - typer sets it when a function is registered
    return callback


def _not_imported() -> None:
    """Stands in the help for a subcommand that was not asked for."""


def _end(message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"fedless: {message}", err=True)
    sys.exit(1)
