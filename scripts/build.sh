#!/usr/bin/env bash
# Configures and builds one preset. usage: scripts/build.sh [PRESET] [TARGET...]     (default: release, everything)
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
preset=${1:-release}
shift || true
cd "$root"
if [[ ! -f build/$preset/build.ninja ]]; then
  log=build/$preset.configure.log
  mkdir -p build
  # llama.cpp's build, when it is needed, reports on stderr by itself.
  cmake --preset "$preset" >"$log" || { tail -20 "$log" >&2; die "configuring failed, see $log"; }
fi
export NINJA_STATUS='[%f/%t, %es] '
if [[ -t 1 ]]; then
  ninja -C "build/$preset" "$@"
else
  ninja -C "build/$preset" "$@" >"build/$preset.log" 2>&1 || { tail -60 "build/$preset.log" >&2; die "the build failed, see build/$preset.log"; }
fi
