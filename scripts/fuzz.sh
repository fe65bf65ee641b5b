#!/usr/bin/env bash
# Fuzzes what parses untrusted bytes, each fuzzer for FUZZ_SECONDS (60), from the cases in tests/corpus. A finding is written to
# build/fuzz/findings: keep it as a case in tests/corpus.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
mkdir -p build/fuzz/findings build/fuzz/corpus
llama=$(scripts/build-llama.sh native)
cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14 \
  -DSTRATA_LLAMA_DIR="$llama" -DSTRATA_FUZZ=ON >build/fuzz/configure.log || { tail -20 build/fuzz/configure.log >&2; exit 1; }
fuzzers=(gguf) # tests/corpus holds a folder for each
for fuzzer in "${fuzzers[@]}"; do
  step "$fuzzer, ${FUZZ_SECONDS:-60} s"
  ninja -C build/fuzz "${fuzzer}_fuzz"
  build/fuzz/fuzz/"${fuzzer}_fuzz" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=65536 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/findings/ build/fuzz/corpus "tests/corpus/$fuzzer"
done
