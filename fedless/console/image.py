"""`fedless image`: an image for a Raspberry Pi, cloud-init's files for the stock system, a Debian package."""

from __future__ import annotations

import json
import locale
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.firstboot.settings import Wifi
from fedless.authoring.sign import read_private_key
from fedless.image import base, build, cloudinit, deb, update
from fedless.image.options import Wanted, wanted
from fedless.protocol.errors import Code, LocalError

MB = 1 << 20
EPOCH = "SOURCE_DATE_EPOCH"
app = typer.Typer(no_args_is_help=True)

ClaimFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The claim that `fedless fleet claim` printed; without one it is put there later.",
    ),
]
Ssid = Annotated[str, typer.Option(metavar="SSID", help="Wi-Fi network; without one: a cable.")]
WifiPassword = Annotated[Path | None, typer.Option(metavar="FILE", help="Its password, in a file.")]
Country = Annotated[
    str, typer.Option(metavar="CC", help="Country of the Wi-Fi. Default: of this machine's locale.")
]
Hostname = Annotated[str, typer.Option(help="Name of the board. Default: made from its serial number.")]
SshKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Public key of who may log in as admin.")]
EdgeToml = Annotated[Path | None, typer.Option(metavar="FILE", help="The device's settings, edge.toml.")]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="Where base and wheels are kept.")]


@app.command("build")
def build_image(  # noqa: PLR0913, PLR0917 - each is an option
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Image to write; .xz: compressed.")
    ],
    claim_file: ClaimFile = None,
    wifi: Ssid = "",
    wifi_password_file: WifiPassword = None,
    wifi_country: Country = "",
    hostname: Hostname = "",
    ssh_key: SshKey = None,
    edge_toml: EdgeToml = None,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Put it into /srv/fedless on the board.")
    ] = None,
    base_tar: Annotated[
        Path | None, typer.Option("--base", metavar="FILE", help="Debian's tarball of an earlier build.")
    ] = None,
    mirror: Annotated[str, typer.Option(metavar="URL", help="Debian archive. Default: as apt has it.")] = "",
    fresh: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--fresh", help="Make Debian's tarball anew: newest packages.")
    ] = False,
    cache: Cache = None,
) -> None:
    """Build a bootable 64-bit image for Raspberry Pi 3, 4, 5 and Zero 2, for an SD card."""
    board = _wanted(claim_file, wifi, wifi_password_file, wifi_country, hostname, ssh_key, edge_toml, data)
    place = build.Place(
        out, cache or base.cache_folder(), epoch(), base_tar, (mirror, "") if mirror else None, fresh,
        tuple(data or ()),
    )  # fmt: skip
    began = time.monotonic()
    made = build.build(
        board, place, lambda line: typer.echo(f"[{time.monotonic() - began:4.0f} s] {line}", err=True)
    )
    typer.echo(f"wrote {made.path}: {made.file_bytes / MB:.0f} MB, {made.card_bytes / MB:.0f} MB on the card")
    typer.echo(json.dumps({"seconds": made.seconds, "sha256": made.digests}), err=True)
    typer.echo(
        "Write it to a card with Raspberry Pi Imager (own image), or with dd; it holds the claim: keep it safe."
    )


@app.command("cloud-init")
def cloud_init(  # noqa: PLR0913, PLR0917 - each is an option
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the files.")],
    package: Annotated[
        Path, typer.Option(metavar="FILE.deb", help="What `fedless image deb` made for arm64.")
    ],
    claim_file: ClaimFile = None,
    wifi: Ssid = "",
    wifi_password_file: WifiPassword = None,
    wifi_country: Country = "",
    hostname: Hostname = "",
    ssh_key: SshKey = None,
    edge_toml: EdgeToml = None,
) -> None:
    """Write cloud-init's files for the boot partition of a stock Raspberry Pi OS (Imager 2, trixie)."""
    board = _wanted(claim_file, wifi, wifi_password_file, wifi_country, hostname, ssh_key, edge_toml, None)
    if not package.is_file():
        raise LocalError(Code.STATE_MISSING, f"There is no {package}.", fix="Make it: fedless image deb")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in cloudinit.files(board, package.name, f"fedless-{secrets.token_hex(8)}").items():
        (out / name).write_text(text, encoding="utf-8")
        (out / name).chmod(0o600)
    (out / package.name).write_bytes(package.read_bytes())
    typer.echo(
        f"wrote {out}: copy all of it onto the boot partition (bootfs) of a card with Raspberry Pi OS."
    )


@app.command("deb")
def make_deb(
    architecture: Annotated[
        list[str] | None, typer.Option("--arch", help="arm64 or amd64; may be given twice. Default: both.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the packages.")
    ] = Path(),
    cache: Cache = None,
) -> None:
    """Make the Debian package fedless-edge for Debian 13 and Raspberry Pi OS of that age."""
    for name in architecture or deb.MACHINES:
        made = deb.build(
            name, out, cache or base.cache_folder(), epoch(), lambda line: typer.echo(line, err=True)
        )
        sizes = f"{made.file_bytes / MB:.0f} MB, {made.installed_bytes / MB:.0f} MB installed"
        typer.echo(f"wrote {made.path}: {sizes}")


@app.command("update")
def make_update(
    key: Annotated[Path, typer.Option(metavar="FILE", help="The publisher's private key.")],
    sequence: Annotated[
        int, typer.Option(min=1, help="Grows with every update; devices take none that is older.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Update to write.")],
    version: Annotated[str, typer.Option(help="What people call it. Default: this version.")] = "",
    libraries: Annotated[
        str, typer.Option(metavar="ARCH", help="aarch64 or x86_64: bring all libraries along, for Debian 13.")
    ] = "",
) -> None:
    """Sign this version of the agent as an update for devices that run an older one."""
    made = update.make(out, read_private_key(key), sequence, version, libraries)
    typer.echo(
        f"wrote {out}: {made.file_bytes / MB:.1f} MB, version {made.update.version}, update {sequence}"
    )


def epoch() -> int:
    """The build's moment: SOURCE_DATE_EPOCH, else now. Raises `LocalError` CONFIG_INVALID."""
    text = os.environ.get(EPOCH, "")
    if text and not text.isdecimal():
        raise LocalError(Code.CONFIG_INVALID, f"{EPOCH} must be seconds since 1970, not {text!r}.")
    return int(text) if text else int(time.time())


def _wanted(
    claim_file: Path | None, ssid: str, password_file: Path | None, country: str, hostname: str,
    ssh_key: Path | None, edge_toml: Path | None, data: list[Path] | None,
) -> Wanted:  # fmt: skip
    if password_file is not None and not ssid:
        raise LocalError(Code.CONFIG_INVALID, "--wifi-password-file is there, but no --wifi.")
    secret = _text(password_file).rstrip("\r\n")
    wifi = Wifi(ssid, secret, (country or _own_country()).upper()) if ssid else None
    for path in data or ():
        if not path.is_file():
            raise LocalError(Code.STATE_MISSING, f"There is no file {path}.")
    return wanted(
        _claim(claim_file),
        hostname,
        wifi,
        _text(ssh_key),
        _text(edge_toml),
        tuple(path.name for path in data or ()),
    )


def _claim(path: Path | None) -> str:
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
    return lines[0] if lines else ""


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(Code.STATE_MISSING, f"{path} cannot be read ({type(error).__name__}).") from error


def _own_country() -> str:
    name = (locale.getlocale()[0] or os.environ.get("LANG", "")).partition(".")[0]
    country = name.partition("_")[2]
    if len(country) != 2:  # noqa: PLR2004 - ISO 3166
        raise LocalError(Code.CONFIG_INVALID, "In which country is the Wi-Fi? Name it: --wifi-country DE")
    return country
