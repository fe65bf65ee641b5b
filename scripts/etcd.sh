#!/usr/bin/env bash
# Prints where etcd's server program is, for the tests of the state store. Fetched once into the cache when it is not installed: the
# Debian package would also start a service.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
command -v etcd && exit 0
folder=$cache/etcd
if [[ ! -x $folder/usr/bin/etcd ]]; then
  mkdir -p "$folder"
  exec 9>"$folder/lock"
  flock 9 # several tests at once
  if [[ ! -x $folder/usr/bin/etcd ]]; then
    work=$(mktemp -d "$folder/XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get -qq download etcd-server >"$work/log" 2>&1) || { cat "$work/log" >&2; die "cannot fetch the Debian package etcd-server; run apt-get update"; }
    dpkg-deb -x "$work"/etcd-server_*.deb "$work/tree"
    mkdir -p "$folder/usr/bin"
    mv "$work/tree/usr/bin/etcd" "$folder/usr/bin/etcd"
  fi
fi
echo "$folder/usr/bin/etcd"
