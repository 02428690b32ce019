#!/usr/bin/env bash
# Makes the throwaway certificates in this directory anew. See README.md.
set -euo pipefail
cd "$(dirname "$0")"

name=throwaway-test-only
# Fixed dates, far apart: a test must not depend on the clock of the machine that made them.
dates=(-startdate 20240101000000Z -enddate 21240101000000Z)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/ca.conf" <<CONF
[ca]
default_ca = throwaway
[throwaway]
database = $work/index.txt
new_certs_dir = $work
default_md = sha256
policy = any
rand_serial = yes
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, DNS:heliostat, IP:127.0.0.1, IP:::1
CONF
touch "$work/index.txt"

request() { # subject, key file, request file
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj "/CN=$1" -keyout "$2" -out "$3"
}
sign() { openssl ca -batch -notext -config "$work/ca.conf" "${dates[@]}" "$@"; }

# The authority's key is thrown away with $work: nobody can ever sign anything else with it.
request "Heliostat throwaway CA, tests only" "$work/ca-key.pem" "$work/ca.csr"
sign -selfsign -extensions authority -keyfile "$work/ca-key.pem" -in "$work/ca.csr" -out "$name-ca.pem"

request "Heliostat throwaway server, tests only" "$name-key.pem" "$work/server.csr"
sign -extensions server -cert "$name-ca.pem" -keyfile "$work/ca-key.pem" -in "$work/server.csr" -out "$name-cert.pem"

# Readable by everybody, as everybody has it anyway: a container's user has to read it through a mount.
chmod 644 "$name-key.pem"
