#!/usr/bin/env bash
# Formatting, warnings as errors, every header compiled by itself, clang-tidy on what changed (all of it with --all), shell scripts.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"

step "clang-format"
git ls-files '*.h' '*.cpp' '*.c' | xargs clang-format-14 --dry-run -Werror

step "shellcheck"
git ls-files '*.sh' .ci/run | xargs shellcheck -x

step "warnings as errors, headers by themselves"
scripts/build.sh lint

step "clang-tidy"
scripts/tidy.py build/lint
