#!/usr/bin/env bash
# Builds the pinned llama.cpp once per version, flavour, patch set and compiler, outside of the tree, and prints the
# folder of the finished install (bin/, lib/, include/).
#
# usage: scripts/build-llama.sh [native|portable|debug|asan|tsan|cuda|peers]      (default: native)
#   native    tuned for this CPU; what development builds and benchmarks use
#   portable  every CPU variant as a plug-in chosen at run time; what `make install` ships
#   debug     -O0 -g, for stepping through llama.cpp and ggml
#   asan/tsan instrumented, for the sanitizer presets
#   cuda      portable, with the CUDA backend
#   peers     as native, with what benchmarks and tests run beside strata: RPC server, llama-perplexity, test-backend-ops, …
set -euo pipefail
flavour=${1:-native}
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"

# shellcheck disable=SC2016 # $ORIGIN is for the dynamic loader
common=(-DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF
  -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_SUBPROCESS=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF
  -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib')
portable=(-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON)
case $flavour in
  native) flags=(-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON) ;;
  portable) flags=(-DCMAKE_BUILD_TYPE=Release "${portable[@]}") ;;
  debug) flags=(-DCMAKE_BUILD_TYPE=Debug -DGGML_NATIVE=ON) ;;
  asan) flags=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DGGML_NATIVE=ON -DLLAMA_SANITIZE_ADDRESS=ON
    -DLLAMA_SANITIZE_UNDEFINED=ON -DGGML_SANITIZE_ADDRESS=ON -DGGML_SANITIZE_UNDEFINED=ON) ;;
  tsan) flags=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DGGML_NATIVE=ON -DLLAMA_SANITIZE_THREAD=ON
    -DGGML_SANITIZE_THREAD=ON) ;;
  cuda) flags=(-DCMAKE_BUILD_TYPE=Release "${portable[@]}" -DGGML_CUDA=ON) ;;
  peers) flags=(-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=ON) ;;
  *) echo "build-llama: unknown flavour '$flavour' (native, portable, debug, asan, tsan, cuda, peers)" >&2; exit 2 ;;
esac
targets=(llama ggml llama-common mtmd server-context llama-server llama-quantize llama-bench llama-gguf-split)
programs=(llama-server llama-quantize llama-bench llama-gguf-split)
if [[ $flavour == peers ]]; then
  programs=(llama-bench llama-completion llama-perplexity ggml-rpc-server test-backend-ops)
  targets=(llama ggml llama-common "${programs[@]}")
fi

source_dir=$("$root/scripts/fetch.py" llama)
tree=$(git -C "$source_dir" rev-parse 'HEAD^{tree}')
patches=("$root"/cmake/patches/llama.cpp/*.patch)
cpu=any
[[ $flavour == native || $flavour == debug || $flavour == *san || $flavour == peers ]] &&
  cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || uname -m)
key=$({ cat "${patches[@]}"; printf '%s\n' "$tree" "$cpu" "${common[@]}" "${flags[@]}" "${targets[@]}"
  ${CC:-cc} --version | head -1; } | sha256sum | cut -c1-12)
prefix=$cache/llama/$flavour-${tree:0:8}-$key
[[ -f $prefix/.complete ]] && { echo "$prefix"; exit 0; }

mkdir -p "$cache/llama"
exec 9>"$cache/llama/$flavour.lock"
flock 9 # two builds of one flavour at the same time: the second waits and finds it done
[[ -f $prefix/.complete ]] && { echo "$prefix"; exit 0; }

work=$cache/llama/source-$key
build=$work/build # belongs to one source; at one place below it, so that ccache hits after a change of a patch
if [[ ! -f $work/.patched ]]; then
  rm -rf "$work"
  git -c advice.detachedHead=false clone -q --local --no-hardlinks "$source_dir" "$work"
  git -C "$work" apply --index "${patches[@]}"
  touch "$work/.patched"
fi
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=$work
echo "building llama.cpp ($flavour), once; this takes some minutes" >&2
log=$cache/llama/$flavour.log
if ! cmake -S "$work" -B "$build" -G Ninja "${common[@]}" "${flags[@]}" "${launcher[@]}" >"$log" 2>&1; then
  tail -20 "$log" >&2
  echo "build-llama: configuring failed, see $log" >&2
  exit 1
fi
# Ninja's own status line is the progress bar on a terminal; elsewhere a line every 20 steps.
export NINJA_STATUS='[%f/%t, %es] '
if [[ -t 2 ]]; then
  ninja -C "$build" "${targets[@]}" 2>&1 | tee -a "$log" >&2
else
  ninja -C "$build" "${targets[@]}" 2>&1 | tee -a "$log" | awk '/^\[/ && ++n % 20 == 0' >&2
fi || { tail -30 "$log" >&2; echo "build-llama: the build failed, see $log" >&2; exit 1; }

rm -rf "$prefix.tmp"
mkdir -p "$prefix.tmp"/{bin,lib,include/server,include/mtmd,include/common,include/vendor}
cp -a "$build"/bin/*.so* "$prefix.tmp/lib/"
for program in "${programs[@]}"; do cp -a "$build/bin/$program" "$prefix.tmp/bin/"; done
find "$build" -name libserver-context.a -exec cp -a {} "$prefix.tmp/lib/" \;
find "$build" -name libcpp-httplib.a -exec cp -a {} "$prefix.tmp/lib/" \;
cp -a "$work"/include/*.h "$work"/ggml/include/*.h "$prefix.tmp/include/"
cp -a "$work"/tools/server/*.h "$prefix.tmp/include/server/"
cp -a "$work"/tools/mtmd/*.h "$prefix.tmp/include/mtmd/"
(cd "$work/common" && find . -name '*.h' -exec cp --parents {} "$prefix.tmp/include/common/" \;)
cp -a "$work"/vendor/nlohmann "$prefix.tmp/include/vendor/"
cp -a "$work/LICENSE" "$prefix.tmp/"
ln -sfn "$work" "$prefix.tmp/source"
touch "$prefix.tmp/.complete"
rm -rf "$prefix"
mv "$prefix.tmp" "$prefix"
echo "$prefix"
