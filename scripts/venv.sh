#!/usr/bin/env bash
# Makes the Python environment of tests and benchmarks once per set of requirements, outside of the tree, and prints its folder.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
key=$({ cat "$root/tests/requirements.txt"; python3 --version; } | sha256sum | cut -c1-12)
venv=$cache/venv-$key
if [[ ! -f $venv/.complete ]]; then
  echo "installing the Python packages of the tests, once" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/tests/requirements.txt" >&2
  touch "$venv/.complete"
fi
echo "$venv"
