#!/bin/sh
# crfs by mount(8) and umount(8), in a mount namespace of its own:   mount-helper.sh CRFS IMAGE DIR, in an empty directory of its own
set -eu
image=$2
dir=$3
here=$PWD

# Nothing is left in /sbin, nor in what mount(8) writes down.
sbin=$(readlink -f /sbin)
mount -t tmpfs -o mode=755 tmpfs "$here"
cd "$here"
# The repository may lie where others cannot go.
crfs=$here/crfs
cp "$1" "$crfs"
mkdir "$here/upper" "$here/work" "$here/cache"
mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$here/upper,workdir=$here/work" "$sbin"
for name in mount.crfs mount.fuse.crfs umount.crfs umount.fuse.crfs; do ln -s "$crfs" "$sbin/$name"; done
mkdir -p /run/mount
mount -t tmpfs tmpfs /run/mount

fail() { echo "$1" >&2; exit 9; }
# The mount options of what is mounted there, and nothing if there is nothing.
shown() { awk -v dir="$dir" '$2 == dir { print $1, $3, $4 }' /proc/mounts; }
# fails STATUS WORDS COMMAND...: ends with that status, and says that.
fails() {
  expected=$1 words=$2
  shift 2
  status=0
  "$@" > "$here/said" 2>&1 || status=$?
  if ! grep -qF "$words" "$here/said" || [ $status != "$expected" ]; then
    fail "$*: status $status: $(cat "$here/said")"
  fi
}

# By fstab.
echo "$image $dir crfs defaults,_netdev,nofail,x-systemd.automount,comment=a,cache-dir=$here/cache,prefetch=none 0 0" > fstab
mount -T "$here/fstab" -a
shown | grep "^$image fuse.crfs ro,nosuid,nodev" || fail "mounted as: $(shown)"
test "$(cat "$dir/f")" = hello
mount -T "$here/fstab" -a
test "$(shown | wc -l)" = 1 || fail "mounted twice"
"$crfs" status | grep -F "$dir" || fail "root's status does not know it"

# A remount changes what can be changed, and says what cannot.
mount -T "$here/fstab" -o remount,noexec "$dir"
shown | grep noexec || fail "not noexec: $(shown)"
mount -T "$here/fstab" -o remount "$dir"
shown | grep noexec && fail "still noexec: $(shown)"
fails 32 "a remount cannot change prefetch of" mount -T "$here/fstab" -o remount,noexec,prefetch=all "$dir"
shown | grep noexec && fail "changed by a remount that failed: $(shown)"
fails 32 "cannot make it show" mount -t crfs -o remount "$image-other" "$dir"
fails 32 "already a crfs mount" mount -t crfs "$image" "$dir"

# What unmounts it waits for its end, or leaves it to who uses it.
exec 3< "$dir/f"
fails 32 "is in use" umount "$dir"
umount -l "$dir"
test "$(cat <&3)" = hello
exec 3<&-
test -z "$(shown)" || fail "still mounted: $(shown)"

# A remount compares with what the mount was made with, not with what is configured by then.
CRFS_PREFETCH=all mount -t crfs -o "cache-dir=$here/cache" "$image" "$dir"
mount -t crfs -o remount,prefetch=all "$image" "$dir"
fails 32 "a remount cannot change prefetch of" mount -t crfs -o remount,prefetch=hints "$image" "$dir"
fails 1 "unknown option uid" mount -t crfs -o remount,uid=7 "$image" "$dir"
mount -t crfs -s -o remount,uid=7,noexec "$image" "$dir"
shown | grep noexec || fail "not noexec: $(shown)"
umount "$dir"
"$crfs" mount --prefetch none --cache-dir cache "$image" "$dir"
mount -t crfs -o "remount,prefetch=none,cache-dir=$here/cache" "$image" "$dir"
fails 32 "a remount cannot change prefetch of" mount -t crfs -o remount,prefetch=hints "$image" "$dir"
umount "$dir"

# At boot mount(8) has no HOME, and credential helpers may want one.
env -i PATH="$PATH" mount -t crfs -o "cache-dir=$here/cache" "$image" "$dir"
server=$("$crfs" status --json | tr , '\n' | sed -n 's/.*"pid": *//p' | head -n 1)
tr '\0' '\n' < "/proc/$server/environ" | grep -x "HOME=$(getent passwd 0 | cut -d : -f 6)" || fail "the server has no HOME"
umount "$dir"

# Options on the command line, and what is wrong with them.
fails 1 "unknown option prefech: is prefetch meant?" mount -t crfs -o prefech=all "$image" "$dir"
fails 1 "invalid value 'some'" mount -t fuse.crfs -o prefetch=some "$image" "$dir"
fails 1 "is a file, and no image" mount -t crfs /etc/fstab "$dir"
fails 32 "there is no directory $here/nowhere" mount -t crfs "$image" "$here/nowhere"
mount -f -t crfs "$image" "$dir"
test -z "$(shown)" || fail "not only faked: $(shown)"
mkdir "$here/a,b"
mount -v -s -t fuse.crfs -o "uid=7,noexec,cache-dir=$here/a\\,b" "$image" "$dir" > said
grep "1 layer" said || fail "it did not say what it has mounted: $(cat said)"
test -e "$here/a,b/v2" || fail "no cache in the directory with a comma"
shown | grep -E "^$image fuse.crfs ro,nosuid,nodev,noexec" || fail "mounted as: $(shown)"
umount -f "$dir"

# As mount.fuse(8) calls it, and without umount's helper.
"$crfs" "$image" "$dir" -o "rw,dev,suid,cache-dir=$here/cache"
shown | grep "^$image fuse.crfs ro,nosuid,nodev" || fail "mounted as: $(shown)"
umount -i "$dir"
test -z "$(shown)" || fail "still mounted: $(shown)"

# By an ordinary user, where fstab lets them: mount(8) starts the helper as that user.
mkdir home
chown 65534:65534 home "$dir"
chmod 0700 home
echo "$image $dir crfs user,noauto,prefetch=none 0 0" > fstab
mount --bind fstab /etc/fstab
mknod fuse c 10 229
chmod 0666 fuse
mount --bind fuse /dev/fuse
as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$here/home" XDG_RUNTIME_DIR="$here/home" "$@"; }
as_user mount "$dir"
shown | grep "^$image fuse.crfs ro,nosuid,nodev,noexec" || fail "mounted as: $(shown)"
test "$(as_user cat "$dir/f")" = hello
as_user umount "$dir"
test -z "$(shown)" || fail "still mounted: $(shown)"
