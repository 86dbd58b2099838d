#!/usr/bin/env bash
# Usage: apt.sh PACKAGE...
# Makes sure that Debian packages are installed: installs the missing ones where this user may, else says what to run.
set -euo pipefail

command -v dpkg-query >/dev/null || {
  echo "not a Debian system: make sure that it has the equivalents of: $*" >&2
  exit 0
}
missing=()
for package in "$@"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  echo "installing Debian packages: ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  exit 0
fi

echo "missing Debian packages: ${missing[*]}. Install them, then run this again:" >&2
echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
exit 1
