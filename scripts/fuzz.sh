#!/usr/bin/env bash
# Fuzzes what untrusted bytes reach: those of FUZZERS (all of them), side by side on the cores there are, for FUZZ_SECONDS (60)
# each, from the cases in tests/corpus. A finding is written to build/fuzz/findings: keep it as a case in tests/corpus.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
declare -A longest=([gguf]=65536 [op_check]=512 [frame]=4096) # input, in bytes; tests/corpus holds a folder for each
read -ra fuzzers <<<"${FUZZERS:-gguf op_check frame}"
mkdir -p build/fuzz/findings
llama=$(scripts/build-llama.sh native)
# -O1: building takes half as long, and what runs most is ggml.
cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=None '-DCMAKE_CXX_FLAGS=-O1 -gline-tables-only' -DCMAKE_C_COMPILER=clang-14 \
  -DCMAKE_CXX_COMPILER=clang++-14 -DSTRATA_LLAMA_DIR="$llama" -DSTRATA_FUZZ=ON >build/fuzz/configure.log ||
  { tail -20 build/fuzz/configure.log >&2; exit 1; }
ninja -C build/fuzz "${fuzzers[@]/%/_fuzz}"

fuzz() { # NAME
  mkdir -p "build/fuzz/corpus/$1"
  build/fuzz/fuzz/"$1_fuzz" -max_total_time="${FUZZ_SECONDS:-60}" -max_len="${longest[$1]}" -rss_limit_mb=1024 -timeout=60 -entropic=0 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$1-" "build/fuzz/corpus/$1" "tests/corpus/$1" \
    >"build/fuzz/$1.log" 2>&1 || { tail -60 "build/fuzz/$1.log"; die "$1: a finding, see build/fuzz/$1.log"; }
  awk -v name="$1" '/number_of_executed_units/ {print name ": " $2 " inputs, no finding"}' "build/fuzz/$1.log"
}
export -f fuzz
step "${fuzzers[*]}, ${FUZZ_SECONDS:-60} s"
failed=0
for fuzzer in "${fuzzers[@]}"; do
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || failed=1; done
  fuzz "$fuzzer" &
done
while [[ -n $(jobs -rp) ]]; do wait -n || failed=1; done
exit "$failed"
