#!/usr/bin/env bash
# Formatting, shell scripts, warnings as errors, every header compiled by itself, the docs' references, clang-tidy.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
mkdir -p build

step "clang-format"
git ls-files '*.h' '*.cpp' '*.c' | xargs clang-format-14 --dry-run -Werror

step "shellcheck"
git ls-files '*.sh' .ci/run | xargs shellcheck -x

step "warnings as errors, headers by themselves"
# In the release build's own folder, so that nothing is compiled twice.
scripts/build-llama.sh native >/dev/null
cmake --preset release -DSTRATA_WERROR=ON -DSTRATA_CHECK_HEADERS=ON >build/lint.configure.log
scripts/build.sh release

step "references into llama.cpp in docs/"
docs/check-lines.py

step "clang-tidy"
scripts/tidy.py build/release
