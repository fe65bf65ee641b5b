#!/usr/bin/env bash
# Installs the Debian packages that strata needs.  usage: scripts/install-deps.sh build|test|lint ...
# Idempotent and quiet: when everything is there it takes a fraction of a second and needs no root.
set -euo pipefail

declare -A groups=(
  [build]="build-essential cmake ninja-build ccache git curl ca-certificates pkg-config python3 python3-pip npm
    libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libboost1.81-dev libssl-dev libabsl-dev
    libsqlite3-dev libcli11-dev libspdlog-dev libfmt-dev nlohmann-json3-dev prometheus-cpp-dev libedit-dev
    libcurl4-openssl-dev libgtest-dev libgmock-dev libbenchmark-dev"
  [test]="python3-venv skopeo gdb procps openssl"
  [lint]="clang-format-14 clang-tidy-14 shellcheck"
  [fuzz]="clang-14 libclang-rt-14-dev"
)

have() { # NAME: is the package installed, or the tool it brings already there from elsewhere?
  case $1 in
    npm | python3 | git | curl | cmake) command -v "$1" >/dev/null && return 0 ;;
    python3-pip) python3 -m pip --version >/dev/null 2>&1 && return 0 ;;
    python3-venv) python3 -c 'import venv, ensurepip' >/dev/null 2>&1 && return 0 ;;
  esac
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

missing=()
for group in "$@"; do
  [[ -n ${groups[$group]:-} ]] || { echo "install-deps: unknown group '$group' (known: ${!groups[*]})" >&2; exit 2; }
  for package in ${groups[$group]}; do have "$package" || missing+=("$package"); done
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

command -v apt-get >/dev/null || {
  echo "install-deps: this system has no apt-get; install the equivalents of: ${missing[*]}" >&2
  exit 1
}
sudo=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "install-deps: run as root or install sudo; missing: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
install() {
  "${sudo[@]}" apt-get update -q >"$log" 2>&1 &&
    "${sudo[@]}" apt-get install -y -q --no-install-recommends -o Dpkg::Progress-Fancy=0 "${missing[@]}" >>"$log" 2>&1
}
install || { tail -30 "$log" >&2; echo "install-deps: apt-get failed, see above" >&2; exit 1; }
