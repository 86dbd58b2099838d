"""`fedless helper`: the second party of helper mode. Its operator makes and runs it; the fleet's certifies it."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cloud_adapters.packaging import KEYS, Wanted
from cloud_adapters.packaging import package as make
from fedless.console.link import CONFIGURATION, find_fleet
from fedless.console.package import Arch, Out, Python, Target, tell
from fedless.protocol.errors import Code, LocalError


class Step(StrEnum):
    """Of a replacement of the helper's keys."""

    BEGIN = "begin"
    END = "end"


app = typer.Typer(no_args_is_help=True)
CERTIFICATE_DAYS = 5 * 365


@app.callback()
def helper() -> None:
    """Run the second party of helper mode, away from the aggregator and under another operator."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The helper's new directory.")],
    fleet: Annotated[str, typer.Option(help="Name of the fleet that it helps.")],
    authority: Annotated[Path, typer.Option(help="The fleet's authority.pem, from its operator.")],
) -> None:
    """Make a helper's keys and settings in DIR, and a request for its certificate."""
    from fedless.helper.main import found
    from fedless.protocol.identity import check_id

    digest = found(directory, check_id(fleet, "fleet name"), _read(authority))
    typer.echo(f"The helper is in {directory}. Its key's digest, which devices pin:")
    typer.echo(f"  {digest.hex()}")
    typer.echo(
        "Give request.der, hpke.pub and signing.pub to the fleet's operator, who answers with cert.pem by"
    )
    typer.echo("  fedless helper certify --fleet FLEET request.der > cert.pem")
    typer.echo("Put cert.pem beside them. Then:")
    typer.echo(f"  fedless helper serve {directory}")


@app.command()
def certify(
    request: Annotated[Path, typer.Argument(help="request.der of the helper.")],
    fleet: Annotated[Path | None, typer.Option(help="The fleet's directory, with its authority.")] = None,
    name: Annotated[str, typer.Option(help="Id of the helper.")] = "main",
) -> None:
    """Sign a helper's certificate; the chain (PEM) goes to standard output."""
    from aggregator.authorities import Authorities
    from aggregator.config import load
    from fedless.protocol.identity import Name, Role, check_id

    settings = load(find_fleet(fleet) / CONFIGURATION)
    authority = Authorities.load(settings.authority.directory, settings.fleet.name).issuing
    names = Name(settings.fleet.name, Role.HELPER, check_id(name, "helper's id"))
    issued = authority.issue(names, _read(request), round(time.time() * 1000), CERTIFICATE_DAYS)
    typer.echo(issued.chain_pem.decode(), nl=False)


@app.command()
def serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The helper's directory, or its helper.toml.")
    ],
) -> None:
    """Run the helper until Ctrl-C or SIGTERM."""
    from fedless.helper.main import serve as run

    run(directory / "helper.toml" if directory.is_dir() else directory)


@app.command("rotate-key")
def rotate_key(
    step: Annotated[Step, typer.Argument(help="begin: make the next keys; end: give the old ones up.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The helper's directory.")],
) -> None:
    """Replace the helper's keys by its own signed word, which devices follow; the aggregator could not write it."""
    from fedless.helper import rotation
    from fedless.helper.config import load

    settings = load(directory / "helper.toml")
    keys, fleet, now_ms = settings.keys, settings.fleet.name, time.time_ns() // 1_000_000
    lists = keys.hpke.with_name(rotation.LISTS)
    if step is Step.BEGIN:
        made = rotation.begin(keys, fleet, now_ms)
        typer.echo(
            f"List {made.number} names the next keys; the helper opens what is sealed to either from now on."
        )
        steps = [
            f"Give {lists} to the fleet's operator, for helper/ of the fleet; then `fedless aggregator reload` there.",
            "When `fedless fleet list` names nobody that lacks helper, the operator puts hpke-next.pub and",
            "signing-next.pub there as hpke.pub and signing.pub, and reloads. When the rounds of before are over:",
            f"  fedless helper rotate-key end {directory}",
        ]
    else:
        made = rotation.end(keys, fleet, now_ms)
        typer.echo(f"List {made.number} is without the old keys, which are removed.")
        steps = [f"Give {lists} to the fleet's operator, as before."]
    for line in (*steps, "A helper that is a function: `fedless helper secret` again, for its platform."):
        typer.echo(line, err=True)


@app.command()
def package(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The helper's directory.")],
    target: Target,
    out: Out = None,
    python: Python = Wanted.python,
    arch: Arch = Wanted.architecture,
) -> None:
    """Package the helper as a cloud function, without its keys, and print the commands that deploy it."""
    from fedless.helper.config import load
    from fedless.helper.packaging import contents

    wanted = Wanted(contents(load(directory / "helper.toml")), out or Path(f"package-{target}"), python, arch)
    made = make(target, wanted)
    tell(made, (f"fedless helper secret {directory} --target {target} --out {KEYS}",))


@app.command()
def secret(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The helper's directory.")],
    target: Annotated[str, typer.Option(help="The platform that gets it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="New file, of mode 0600.")] = Path(
        KEYS
    ),
    database_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The password of a memory in PostgreSQL.")
    ] = None,
) -> None:
    """Write the helper's keys as the platform's secret takes them; remove the file when the platform has it."""
    from fedless.helper.config import load
    from fedless.helper.packaging import secret_text

    password = "" if database_password_file is None else _read(database_password_file).decode().strip()
    text = secret_text(load(directory / "helper.toml"), target, password)
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise LocalError(Code.STATE_EXISTS, f"{out}: {error.strerror}.", fix="Name another --out.") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    typer.echo(f"wrote {out}; whoever reads it can open this helper's seeds")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError(Code.STATE_MISSING, f"{path}: {error.strerror}.") from error
