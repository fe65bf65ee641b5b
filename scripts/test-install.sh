#!/usr/bin/env bash
# Installs the portable tree, moves it to another folder, runs it there with a bare environment, and with the oldest x86-64 CPU variant alone.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
scripts/fetch.py models
scripts/build.sh portable
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cmake --install build/portable --prefix "$tmp/first" >/dev/null
mv "$tmp/first" "$tmp/moved"

ask() { # TREE: one greedy answer by the installed CLI, nothing of the build tree in its environment
  env -i HOME="$tmp" PATH=/usr/bin:/bin STRATA_HOME="$tmp/home" "$1/bin/strata" run --temperature 0 --max-tokens 8 \
    "$models/smollm2-135m-instruct-q4_1.gguf" "The capital of France is" </dev/null
  env -i HOME="$tmp" PATH=/usr/bin:/bin STRATA_HOME="$tmp/home" "$1/bin/strata" stop --daemon >/dev/null
}
step "installed tree, moved"
if LC_ALL=C grep -rlI "$root" "$tmp/moved" >/dev/null; then die "the installed tree names the build tree"; fi
for file in "$tmp"/moved/bin/* "$tmp"/moved/lib/*.so; do
  if ldd "$file" | grep -E 'not found|'"$cache"; then die "$file needs a library that is not in the tree"; fi
done
ask "$tmp/moved"
step "only the plain x86-64 variant (what the oldest CPU would pick)"
find "$tmp/moved/lib" -name 'libggml-cpu-*.so' ! -name 'libggml-cpu-x64.so' -delete
ask "$tmp/moved"
echo "the installed tree works after a move and on the plain CPU variant"
