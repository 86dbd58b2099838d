#!/usr/bin/env bash
# Usage: cloud-tools.sh FOLDER VENV
# Makes FOLDER with what `make test-clouds` needs beside Python environments: AWS' Runtime Interface Emulator (a file in
# a wheel), the runtime interface client alone (from VENV), and serverless-offline (npm). Everything is pinned by hashes.
set -euo pipefail

folder=$1 venv=$2
here=$(cd "$(dirname "$0")/../.." && pwd)

command -v npm >/dev/null || "$here/deploy/setup/apt.sh" nodejs npm
rm -rf "$folder"
mkdir -p "$folder/wheels" "$folder/node" "$folder/interface"
"$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$folder/wheels" \
  -r "$here/requirements/clouds-emulator.txt"
machine=$(uname -m)
"$venv/bin/python" - "$folder" "$machine" <<'PYTHON'
import shutil
import sys
import zipfile
from importlib.metadata import files
from pathlib import Path

folder, machine = Path(sys.argv[1]), sys.argv[2]
emulator = f"aws-lambda-rie-{'arm64' if machine == 'aarch64' else machine}"
with zipfile.ZipFile(next(folder.glob("wheels/*.whl"))) as wheel:
    tool = folder / f"aws-lambda-rie-{machine}"
    tool.write_bytes(wheel.read(f"samcli/local/rapid/{emulator}"))
    tool.chmod(0o755)
for package in ("awslambdaric", "simplejson", "snapshot-restore-py"):
    for file in files(package) or ():
        if ".." not in file.parts:
            target = folder / "interface" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)
PYTHON
rm -r "$folder/wheels"
cp "$here"/requirements/clouds-node/package*.json "$folder/node/"
npm ci --prefix "$folder/node" --legacy-peer-deps --no-audit --no-fund --silent
