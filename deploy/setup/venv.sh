#!/usr/bin/env bash
# Usage: venv.sh FOLDER LOCK
# Makes the virtual environment FOLDER anew with exactly the packages of LOCK, each checked by its hash.
# PYTHON names the interpreter (default python3); it must be 3.11 or newer.
set -euo pipefail

venv=$1 lock=$2 python=${PYTHON:-python3}
here=$(dirname "$0")

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1). Name another one: make PYTHON=python3.12 ..." >&2
  exit 1
}
# Debian cuts ensurepip out of python3 and puts it in python3-venv; other builds of Python have it.
"$python" -c 'import ensurepip' 2>/dev/null || "$here/apt.sh" python3-venv
rm -rf "$venv"
"$python" -m venv "$venv"
echo "installing $(grep -c '==' "$lock") packages of $lock into $venv" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r "$lock"
"$venv/bin/python" -m pip check
