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
home=$root/build/demo
model=smollm2
strata --home "$home" down >/dev/null 2>&1 || true # of an earlier demo
trap 'strata --home "$home" down >/dev/null 2>&1 || true' EXIT
step "a cluster of three nodes, as if on three machines: certificates on every connection"
strata --home "$home" up --nodes 3 >/dev/null 2>&1
export STRATA_HOME=$home/up/node-1
url=http://127.0.0.11:7420
strata nodes

step "import the model on the first node: one blob per layer, each named by its hash"
strata import "$models/smollm2-135m-instruct-q4_1.gguf" --name "$model"
strata ls

step "spread its layers over the nodes"
strata deploy "$model"
strata ps

question='Write two sentences about the sea.'
step "ask it over its OpenAI API: $question"
scripts/ask.py "$url" "$model" "$question"

question='Write a story about the sea.'
step "the executor of a node is killed in the middle of a sentence, and the sentence goes on: $question"
victim=$(sed -n 's/.*executor node-2 on .* (process \([0-9]*\)).*/\1/p' "$home/up/node-2/logs/stratad.log" | tail -1)
scripts/ask.py "$url" "$model" "$question" "$victim"
strata ps

cat <<TEXT

${bold}Try next$reset (with PATH=$root/build/release/bin:\$PATH)
  strata run $models/smollm2-135m-instruct-q4_1.gguf      a conversation in the terminal
  strata show ${model}                                        what a model is made of
  strata up; strata down                                  a cluster on this machine, to try
TEXT
