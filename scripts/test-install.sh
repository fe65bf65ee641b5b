#!/usr/bin/env bash
# Installs the portable tree, moves it to another folder, runs it there with a bare environment, and with the oldest x86-64 CPU variant alone.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
scripts/fetch.py models
scripts/build.sh portable
tmp=$(mktemp -d)
executor=
trap '[[ -z $executor ]] || kill "$executor"; rm -rf "$tmp"' EXIT
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
step "a stock llama.cpp program with the installed plug-in, over the installed executor"
mkfifo "$tmp/ready"
env -i PATH=/usr/bin:/bin "$tmp/moved/bin/strata-engine" executor --listen 127.0.0.1:0 --threads 1 --store "$tmp/layers" \
  >"$tmp/ready" 2>"$tmp/executor.log" &
executor=$!
read -r ready <"$tmp/ready"
address=$(grep -oE '127\.0\.0\.1:[0-9]+' <<<"$ready")
env -i PATH=/usr/bin:/bin GGML_BACKEND_PATH="$tmp/moved/lib/libggml-strata.so" STRATA_MESH="$address" \
  "$("$root/scripts/build-llama.sh" portable)/bin/llama-bench" -m "$models/smollm2-135m-instruct-q4_1.gguf" \
  -dev STRATA0 -ngl 99 -t 1 -p 32 -n 8 -r 1
for _ in {1..100}; do grep -q 'left after' "$tmp/executor.log" && break; sleep 0.1; done
grep -E 'left after [1-9][0-9]* graphs' "$tmp/executor.log" || die "the executor ran no graph: $(cat "$tmp/executor.log")"
step "only the plain x86-64 variant (what the oldest CPU would pick)"
find "$tmp/moved/lib" -name 'libggml-cpu-*.so' ! -name 'libggml-cpu-x64.so' -delete
ask "$tmp/moved"
echo "the installed tree works after a move and on the plain CPU variant"
