#!/usr/bin/env bash
# From a bare machine to a model that answers. Everything it starts it also ends.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
cd "$root"
begin=$SECONDS

step "Debian packages"
scripts/install-deps.sh build
step "model and llama.cpp"
scripts/fetch.py all >/dev/null
scripts/build-llama.sh native >/dev/null
step "building strata"
scripts/build.sh release
export PATH=$root/build/release/bin:$PATH
echo "${dim}ready after $((SECONDS - begin)) s$reset"

# A home of its own, so that the demo never meets a daemon of yours.
export STRATA_HOME=$root/build/demo
model=smollm2
port=7421
step "a daemon on this machine"
strata stop --daemon >/dev/null 2>&1 || true # of an earlier demo
executors=()
cleanup() {
  strata stop --daemon >/dev/null 2>&1 || true
  for pid in "${executors[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap cleanup EXIT
strata serve --detach --listen "127.0.0.1:$port"

step "import the model: one blob per layer, each named by its hash"
strata import "$models/smollm2-135m-instruct-q4_1.gguf" --name "$model"
strata ls

question='Write two sentences about the sea.'
step "ask it over its OpenAI API: $question"
scripts/ask.py "http://127.0.0.1:$port" "$model" "$question"

step "what is running"
strata ps

step "the same model over three executors, as if on three machines"
addresses=127.0.0.1:7441,127.0.0.1:7442,127.0.0.1:7443
for address in ${addresses//,/ }; do
  strata-engine executor --listen "$address" --threads 1 >>"$STRATA_HOME/executors.log" 2>&1 &
  executors+=($!)
  disown # its end is no news for this shell
done
strata run "$model" --on "$addresses" --max-tokens 1 "Hello" >/dev/null
strata ps
question='Write a story about the sea.'
step "one of them is killed in the middle of a sentence, and the sentence goes on: $question"
scripts/ask.py "http://127.0.0.1:$port" "$model" "$question" "${executors[1]}"
strata ps

cat <<TEXT

${bold}Try next$reset (with PATH=$root/build/release/bin:\$PATH)
  strata run $models/smollm2-135m-instruct-q4_1.gguf      a conversation in the terminal
  strata show ${model}                                        what a model is made of
  strata serve                                            the API on http://127.0.0.1:7420
TEXT
