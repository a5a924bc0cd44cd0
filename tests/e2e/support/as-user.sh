#!/bin/sh
# Runs a script as the ordinary user nobody, in a mount namespace of its own where /dev/fuse is what distributions make it:
#
#     as-user.sh DIR SCRIPT ARGUMENT...     DIR becomes the user's: home, runtime directory and working directory
#
# Nothing has to be put back: the namespace, and what is mounted in it, ends with its last process.
set -eu
if [ "${1:-}" != --inside ]; then
  exec unshare --mount --propagation private sh "$0" --inside "$@"
fi
dir=$2
shift 2
chown nobody "$dir"
# A tmpfs, since the directory may lie on a filesystem that allows no devices.
mkdir "$dir/dev"
mount -t tmpfs -o mode=0755 tmpfs "$dir/dev"
mknod -m 0666 "$dir/dev/fuse" c 10 229
mount --bind "$dir/dev/fuse" /dev/fuse
install -d -o nobody -m 0700 "$dir/run"
cd "$dir"
exec setpriv --reuid "$(id -u nobody)" --regid "$(id -g nobody)" --clear-groups \
  env HOME="$dir" XDG_RUNTIME_DIR="$dir/run" XDG_CACHE_HOME="$dir/cache" sh "$@"
