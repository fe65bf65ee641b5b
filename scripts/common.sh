# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: where things are, and how steps are shown.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${STRATA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/strata}
models=$cache/models

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' dim=$'\e[2m' reset=$'\e[0m'; else bold='' dim='' reset=''; fi
step() { printf '%s\n' "$bold==> $*$reset"; }
die() { printf '%s\n' "$*" >&2; exit 1; }
