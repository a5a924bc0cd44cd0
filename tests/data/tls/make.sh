#!/bin/sh
# Makes the certificates of this directory anew, with openssl 3. Each NAME.pem has a certificate and its key, for tests alone.
set -eu
cd "$(dirname "$0")"
names='subjectAltName=DNS:localhost,IP:127.0.0.1'

# own NAME KIND-OF-KEY OPTIONS...: signed by itself, and CA:TRUE, as `openssl req -x509` makes one.
own() {
    name=$1 key=$2
    shift 2
    # shellcheck disable=SC2086
    openssl req -x509 -newkey $key -nodes -keyout "$name.key" -out "$name.crt" -subj "/CN=$name" "$@"
    cat "$name.crt" "$name.key" > "$name.pem"
}
long='-days 36500'

own rsa 'rsa:2048' $long -addext "$names"
own rsa-4096 'rsa:4096' $long -addext "$names"
own p256 'ec -pkeyopt ec_paramgen_curve:P-256' $long -addext "$names"
own p384 'ec -pkeyopt ec_paramgen_curve:P-384' $long -addext "$names"
own p521 'ec -pkeyopt ec_paramgen_curve:P-521' $long -addext "$names" -sha512
own p521-sha256 'ec -pkeyopt ec_paramgen_curve:P-521' $long -addext "$names" -sha256
own ed25519 'ed25519' $long -addext "$names"
own no-ca 'ec -pkeyopt ec_paramgen_curve:P-256' $long -addext "$names" -addext 'basicConstraints=critical,CA:FALSE'
own other-name 'ec -pkeyopt ec_paramgen_curve:P-256' $long -addext 'subjectAltName=DNS:registry.example'

# signed NAME BY EXTENSION HASH: a key of P-256 that another has signed.
signed() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
    printf '%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -days 36500 -extfile "$1.ext" "$4" -out "$1.crt"
    cat "$1.crt" "$1.key" > "$1.pem"
}
own root 'ec -pkeyopt ec_paramgen_curve:P-521' $long -sha384
signed intermediate root 'basicConstraints=critical,CA:TRUE' -sha512
signed leaf intermediate "$names" -sha256
signed client intermediate 'extendedKeyUsage=clientAuth' -sha256

# Signed by itself for a year that is over: only `openssl ca` takes dates.
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout expired.key -out expired.csr -subj /CN=expired
printf '%s\n' "$names" > expired.ext
: > index.txt
printf '%s\n' '[ca]' 'default_ca = here' '[here]' 'database = index.txt' 'new_certs_dir = .' 'policy = any' \
    'default_md = sha256' 'rand_serial = yes' '[any]' 'commonName = supplied' > ca.conf
openssl ca -batch -config ca.conf -selfsign -keyfile expired.key -in expired.csr -extfile expired.ext -notext \
    -startdate 20200101000000Z -enddate 20210101000000Z -out expired.crt
cat expired.crt expired.key > expired.pem
find . -name '[0-9A-F]*.pem' -newer ca.conf -name '????????????????????????????????????????.pem' -delete
rm -f index.txt* ca.conf
rm -f ./*.key ./*.crt ./*.csr ./*.ext ./*.srl
