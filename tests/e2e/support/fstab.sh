#!/bin/sh
# Mounts by a line of fstab, in a mount namespace that is the caller's own:   fstab.sh CRFS IMAGE OPTIONS [DIR [TYPE]], in a directory of its own
set -eu
crfs=$1 image=$2 options=$3 dir=${4:-$PWD/dir} type=${5:-crfs}
sbin=$(readlink -f /sbin)
if [ ! -L "$sbin/mount.crfs" ]; then
  mkdir sbin
  mount -t tmpfs tmpfs sbin
  mkdir sbin/upper sbin/work /run/mount 2>/dev/null || [ -d /run/mount ]
  mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$PWD/sbin/upper,workdir=$PWD/sbin/work" "$sbin"
  mount -t tmpfs tmpfs /run/mount
  ln -s "$crfs" "$sbin/mount.crfs"
fi
echo "$image $dir $type _netdev,nofail,cache-dir=$PWD/cache,$options 0 0" > fstab
exec mount -T "$PWD/fstab" "$dir"
