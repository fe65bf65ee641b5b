#!/usr/bin/env bash
# Makes certificates for the engines of a mesh: a CA, unless DIR has one, and for each NAME a folder DIR/NAME as --tls takes it,
# new if it is there. DIR/NAME goes to the machine of that name; ca.key, with which more can be made, stays.
# usage: scripts/mesh-certs.sh DIR NAME...
set -euo pipefail
[[ $# -ge 2 ]] || { echo "usage: scripts/mesh-certs.sh DIR NAME..." >&2; exit 2; }
umask 077
dir=$1
shift
mkdir -p "$dir"

make() { # NAME IS_CA KEY CERTIFICATE OPTION...
  local said
  said=$(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj "/CN=$1" \
    -addext "basicConstraints=critical,CA:$2" -keyout "$3" -out "$4" "${@:5}" 2>&1) || { echo "$said" >&2; exit 1; }
}

[[ -e $dir/ca.key ]] || make "strata mesh" TRUE "$dir/ca.key" "$dir/ca.pem"
for name in "$@"; do
  mkdir -p "$dir/$name"
  make "$name" FALSE "$dir/$name/key.pem" "$dir/$name/cert.pem" -CA "$dir/ca.pem" -CAkey "$dir/ca.key"
  cp "$dir/ca.pem" "$dir/$name/"
done
