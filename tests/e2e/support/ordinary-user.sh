#!/bin/sh
# What an ordinary user does with crfs, all of it through fusermount3:   ordinary-user.sh CRFS IMAGE EXPECTED
set -eu
crfs=$1
image=$2
expected=$3

mkdir image upper work merged
"$crfs" mount "$image" image
grep " $PWD/image fuse.crfs ro,nosuid,nodev" /proc/mounts

not_mounted() {
  if grep -F " $PWD/image " /proc/mounts; then exit 1; fi
}

# Every file that the listing has, has its digest.
sums() {
  python3 -c '
import json, sys
for line in open(sys.argv[1]):
    entry = json.loads(line)
    if entry.get("sha256"):
        print(entry["sha256"] + "  " + sys.argv[2] + entry["path"])' "$expected" "$1" | sha256sum --quiet -c -
}
sums image
"$crfs" status | grep -F "$PWD/image"

# A server that is killed is replaced, and all are when crfs is.
pid() { "$crfs" status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])'; }
first=$(pid)
kill -9 "$first"
sums image
until test "$(pid)" != "$first"; do sleep 0.01; done
"$crfs" upgrade --all | grep -F "$PWD/image"
"$crfs" status | grep -F "started again 2 times"
sums image

# The image's files are root's: squashed to the user, who may then change them.
fuse-overlayfs -o lowerdir="$PWD/image,upperdir=$PWD/upper,workdir=$PWD/work,squash_to_uid=$(id -u),squash_to_gid=$(id -g)" merged
sums merged
echo new > merged/new
mv merged/big/after merged/big/moved
rm merged/big/zeros
echo more >> merged/big/ramp-4194304
chmod 0600 merged/big/ramp-4194305
test "$(cat merged/new)" = new
test "$(stat -c %s merged/big/moved)" = 18
test ! -e merged/big/zeros
test "$(stat -c %s merged/big/ramp-4194304)" = 4194309
fusermount3 -u merged
sums image

"$crfs" umount image
not_mounted

# And without crfs umount.
"$crfs" mount "$image" image
sums image
fusermount3 -u image
not_mounted
