"""`fedless privacy`: what each client's data was spent on by differential privacy (docs/privacy.md)."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from fedless.console import link
from fedless.console.terminal import FleetOption, print_table

app = typer.Typer()


@app.command("privacy")
def privacy(
    fleet: FleetOption = None,
    delta: Annotated[float, typer.Option("--delta", help="Of the epsilons that are shown.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show every client's privacy ledger, over all runs; the guarantee is the worst one."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        lines = operator.ledger(delta)
    if as_json:
        typer.echo(json.dumps([_values(line) for line in lines], indent=2))
        return
    table = Table(
        "client", "protects", "rounds", "spent (sum of 1/z2)", f"epsilon (delta {delta:g})", box=None
    )
    for line in lines:
        epsilon = f"{line.epsilon:.4f}" if line.HasField("epsilon") else "-"
        table.add_row(line.client_id, line.unit, str(line.rounds), f"{line.spend:.6g}", epsilon)
    if lines:
        print_table(table)
    typer.echo(f"{len(lines)} ledgers", err=True)


def _values(line: link.LedgerLine) -> dict[str, object]:
    return {
        "client": line.client_id,
        "protects": line.unit,
        "rounds": line.rounds,
        "spend": line.spend,
        "epsilon": line.epsilon if line.HasField("epsilon") else None,
    }
