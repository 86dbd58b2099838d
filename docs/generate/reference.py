"""The reference, made from the code: commands, settings, the wire, codes, transitions."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer.main

os.environ |= {"COLUMNS": "100", "TERM": "dumb"}

from edge_runtime import cli
from fedless.console import main as console
from fedless.protocol.errors import Code

SAMPLES = {
    "aggregator": "`fedless aggregator serve`", "edge": "`fedless-edge run`", "helper": "`fedless helper serve`",
    "task": "`fedless run start`",
}  # fmt: skip


def pages(root: Path) -> dict[str, str]:
    """Source path -> text."""
    return {
        "reference/fedless.md": _commands(),
        "reference/fedless-edge.md": _device_commands(),
        "reference/settings.md": _settings(root),
        "reference/protocol.md": _protocol(root),
        "reference/codes.md": _codes(),
    }


def _commands() -> str:
    parts = [
        "# `fedless`\n\nOn the workstation and the aggregator's machine. `fedless --debug ...` shows tracebacks.\n"
    ]
    for name in console.COMMANDS:
        group: Any = typer.main.get_command(console.build(name))
        parts += _command(group.commands[name], f"fedless {name}")
    return "\n".join(parts)


def _command(command: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - typer keeps its classes of commands to itself
    if subs := getattr(command, "commands", None):
        yield f"## `{path}`\n\n{command.help or ''}\n"
        for name, sub in subs.items():
            yield from _command(sub, f"{path} {name}")
        return
    level = "##" if path.count(" ") == 1 else "###"
    text = command.get_help(command.make_context(path, [], resilient_parsing=True))
    yield f"{level} `{path}`\n\n```text\n{text}\n```\n"


def _device_commands() -> str:
    parser = cli._parser()  # noqa: SLF001 - the parser is the reference
    parts = ["# `fedless-edge`\n\nOn a device.\n"]
    parts += _parsers(parser, "fedless-edge")
    return "\n".join(parts)


def _parsers(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    if not subs or path == "fedless-edge":
        out = io.StringIO()
        with redirect_stdout(out):
            parser.print_help()
        yield f"## `{path}`\n\n```text\n{out.getvalue()}```\n"
    for action in subs:
        for name, sub in action.choices.items():
            yield from _parsers(sub, f"{path} {name}")


def _settings(root: Path) -> str:
    parts = [
        "# Settings\n\nOne TOML file per program. Every field with its unit and default; an unknown key is an error."
    ]
    for path in sorted((root / "deploy/samples").glob("*.toml")):
        kind = path.stem.split("-")[0]
        title = f"\n\n## {path.name}\n\nRead by {SAMPLES.get(kind, 'an experiment')}.\n"
        parts.append(f"{title}\n```toml\n{path.read_text(encoding='utf-8')}```\n")
    return "".join(parts)


def _protocol(root: Path) -> str:
    head = (
        "# The wire\n\ngRPC over TLS 1.3 with client certificates (enrollment: without). Messages of secure "
        "aggregation travel in an encoding of their own, field by field in [Security](../security.md).\n"
    )
    protos = sorted((root / "proto/fedless/v1").glob("*.proto"))
    return head + "".join(
        f"\n## {path.name}\n\n```protobuf\n{path.read_text(encoding='utf-8')}```\n" for path in protos
    )


def _codes() -> str:
    codes = sorted(Code, key=lambda code: code.value)
    rows = [f"| `{code.value}` | {code.status} | {code.sentence} |" for code in codes]
    head = ["# Codes", "", "Every refusal and every failure has one, with a counter of its name.", ""]
    head += ["| code | gRPC status | what it says |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])
