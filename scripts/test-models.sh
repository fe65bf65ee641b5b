#!/usr/bin/env bash
# Fetches the test models and makes the variants that tests and benchmarks use, once, in the cache:
#   smollm2-135m-instruct-q4_1.gguf   as published
#   smollm2-135m-instruct-q4_0.gguf, …-q4_k_m.gguf   requantized from it
#   minilm-f32.gguf, minilm-f16.gguf  MiniLM, converted from safetensors
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
"$root/scripts/fetch.py" models
smollm2=$models/smollm2-135m-instruct
minilm=("$models"/minilm-{f32,f16}.gguf)
for type in q4_0 q4_k_m; do
  [[ -f $smollm2-$type.gguf ]] && continue
  llama=$("$root/scripts/build-llama.sh" native)
  "$llama/bin/llama-quantize" --allow-requantize "$smollm2-q4_1.gguf" "$smollm2-$type.gguf.part" "${type^^}" 2 >/dev/null 2>&1 ||
    die "test-models: quantizing $smollm2-q4_1.gguf failed"
  mv "$smollm2-$type.gguf.part" "$smollm2-$type.gguf"
done
for file in "${minilm[@]}"; do
  [[ -f $file ]] && continue
  type=${file##*-}
  "$("$root/scripts/venv.sh")/bin/python" "$root/scripts/minilm_to_gguf.py" "$models/minilm" "$file.part" --type "${type%.gguf}"
  mv "$file.part" "$file"
done
