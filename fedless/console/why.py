"""`fedless why`: why a run, a round or a client in it went as it did."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedless.console import link
from fedless.console.terminal import FleetOption

app = typer.Typer()
WIDE = 130


@app.command("why")
def why(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    number: Annotated[
        int, typer.Argument(metavar="[ROUND]", min=0, help="The round's number.", show_default=False)
    ] = 0,
    client: Annotated[
        str, typer.Argument(metavar="[CLIENT]", help="Id of a client.", show_default=False)
    ] = "",
    fleet: FleetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Say why a run or round took that long, and why a client trained, was skipped, refused or dropped.

    With round 0 and a client: of that client in the run's last rounds.
    """
    with link.open_link(link.find_fleet(fleet)) as operator:
        story = operator.why(run, number, client)
    if as_json:
        typer.echo(json.dumps(story, indent=2))
    else:
        show(story)


def show(story: dict[str, Any]) -> None:
    """The story for people."""
    console = Console()
    console = Console(width=console.width if console.is_terminal else WIDE, highlight=False, markup=False)
    console.print(story["title"])
    for line in story["lines"]:
        console.print(f"  {line}")
    if story["stretches"]:
        total = sum(each["ms"] for each in story["stretches"]) or 1.0
        table = Table("", "time", "share", "on", "what", box=None, pad_edge=False)
        for each in story["stretches"]:
            share = f"{each['ms'] / total:.0%}"
            table.add_row(each["name"], _duration(each["ms"]), share, each["on"], each["meaning"])
        console.print()
        console.print(table)
    if story["timeline"]:
        console.print()
        for at_ms, what, who in story["timeline"]:
            console.print(f"  {at_ms / 1000:9.2f} s  {what} {who}".rstrip())


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"  # noqa: PLR2004 - a second
