#!/usr/bin/env bash
# Runs one benchmark: a table on the screen, the same as JSON in bench/out/NAME.json. usage: bench/run.sh NAME [OPTIONS]
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/../scripts/common.sh"
cd "$root"
name=$1
shift
exec "$(scripts/venv.sh)/bin/python" "bench/$name.py" "$@"
