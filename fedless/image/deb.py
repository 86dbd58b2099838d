"""The Debian package `fedless-edge`: the runtime's tree with a control file, for arm64 and amd64.

No debhelper and no build on a board: `dpkg-deb` packs what is there, as root's files, with the build's moment as every
time. No debconf question; the service starts when the device has joined. Called by `fedless image deb`.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedless import __version__
from fedless.image import runtime
from fedless.image.run import demand, run
from fedless.protocol.errors import Code, LocalError

NAME = "fedless-edge"
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
_CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: fedless <fedless@localhost>
Installed-Size: {size_kb}
Depends: python3 (>= 3.13), python3 (<< 3.14), libc6 (>= 2.34), libstdc++6, libgcc-s1
Recommends: bubblewrap, libseccomp2, ca-certificates
Section: net
Priority: optional
Description: device of a fedless fleet: federated learning on functions
 An agent that waits for signed wake-ups over MQTT, trains with TFLite on the
 data of this device in a sandbox, and reports masked updates over gRPC.
 .
 Its Python libraries lie in /opt/fedless and touch no other package's.
"""
_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  if command -v systemd-sysusers >/dev/null; then systemd-sysusers fedless.conf; fi
  if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create fedless.conf || true; fi
  python3 -m compileall -q /opt/fedless/lib/site-packages || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable fedless-edge.service
    systemctl restart fedless-edge.service || true
  else
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -sf /usr/lib/systemd/system/fedless-edge.service /etc/systemd/system/multi-user.target.wants/
  fi
fi
"""
_PRERM = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ] && [ "$1" = remove ]; then
  systemctl disable --now fedless-edge.service fedless-join.service || true
fi
find /opt/fedless/lib -name __pycache__ -type d -prune -exec rm -rf {} +
"""
_POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = remove ]; then rm -f /etc/systemd/system/multi-user.target.wants/fedless-edge.service; fi
if [ "$1" = purge ]; then rm -rf /var/lib/fedless-edge; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
"""
_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: fedless

Files: *
Copyright: 2026 the fedless authors
License: Apache-2.0
 The full text is in /usr/share/common-licenses/Apache-2.0.

Files: opt/fedless/lib/site-packages/*
Copyright: 2026 the authors of each library
License: see-each
 Each library's licence is in its folder NAME-VERSION.dist-info there.
"""
# What lintian has to say about wheels of others below /opt, and a maintainer without a mail host.
_OVERRIDES = """\
fedless-edge: bogus-mail-host
fedless-edge: bogus-mail-host-in-debian-changelog
fedless-edge: custom-library-search-path
fedless-edge: dir-or-file-in-opt
fedless-edge: embedded-library
fedless-edge: extra-license-file
fedless-edge: hardening-no-fortify-functions
fedless-edge: library-not-linked-against-libc
fedless-edge: no-manual-page
fedless-edge: relative-library-search-path
fedless-edge: script-not-executable
fedless-edge: shared-library-lacks-prerequisites
fedless-edge: unstripped-binary-or-object
"""


@dataclass(frozen=True)
class Package:
    """What was made."""

    path: Path
    file_bytes: int
    installed_bytes: int


def build(architecture: str, out: Path, cache: Path, epoch: int, observe: Callable[[str], None]) -> Package:
    """Make `out/fedless-edge_VERSION_ARCHITECTURE.deb`. Raises `LocalError` CONFIG_INVALID, NOT_INSTALLED."""
    if architecture not in MACHINES:
        raise LocalError(Code.CONFIG_INVALID, f"Expected {' or '.join(MACHINES)}, found {architecture!r}.")
    demand("dpkg-deb")
    out.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    target = out / f"{NAME}_{__version__}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix=".fedless-deb-", dir=out) as folder:
        tree = Path(folder) / "tree"
        observe(f"the runtime for {architecture} ...")
        runtime.make(tree, MACHINES[architecture], cache)
        _documents(tree, epoch)
        size = sum(path.lstat().st_size for path in runtime.walk(tree))
        _control(tree / "DEBIAN", tree, architecture, size)
        runtime.settle(tree, epoch)
        observe(f"packing {size >> 20} MB ...")
        run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(tree), str(target)],
            epoch=epoch,
        )
    return Package(target, target.stat().st_size, size)


def _documents(tree: Path, epoch: int) -> None:
    folder = tree / "usr" / "share" / "doc" / NAME
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(_COPYRIGHT)
    moment = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(epoch))
    text = (
        f"{NAME} ({__version__}) unstable; urgency=medium\n\n  * Version {__version__}.\n\n"
        f" -- fedless <fedless@localhost>  {moment}\n"
    )
    with (folder / "changelog.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.encode())
    overrides = tree / "usr" / "share" / "lintian" / "overrides" / NAME
    overrides.parent.mkdir(parents=True)
    overrides.write_text(_OVERRIDES)


def _control(folder: Path, tree: Path, architecture: str, size: int) -> None:
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in sorted(runtime.walk(tree))
        if path.is_file() and not path.is_symlink()
    ]
    folder.mkdir()
    text = _CONTROL.format(
        name=NAME, version=__version__, architecture=architecture, size_kb=(size + 1023) // 1024
    )
    (folder / "control").write_text(text)
    (folder / "md5sums").write_text("".join(sums))
    for name, script in (("postinst", _POSTINST), ("prerm", _PRERM), ("postrm", _POSTRM)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
