#!/usr/bin/env bash
# mkfs.erofs 1.5 (Debian 12's package erofs-utils 1.5-1): `--chunksize` makes images only on the filesystem that /tmp is on.
#
# It collects chunks in an unnamed file in /tmp, whatever TMPDIR says, and moves them by copy_file_range(2). Between two filesystems the kernel
# answers EXDEV, for which there is no other way: mkfs.erofs says "Input/output error", and ends with 1. The same tree without chunks, or with the
# image in /tmp, is made. Who builds images in a container whose /tmp is a tmpfs, as is usual, gets none with chunks.
#
# As root on Debian 12: it mounts a tmpfs of its own.
set -euo pipefail
place=$(mktemp -d -p /tmp)
trap 'umount "$place/elsewhere" 2>/dev/null || true; rm -rf "$place"' EXIT
cd "$place"
apt-get download -q erofs-utils=1.5-1 >log 2>&1 || { cat log; exit 1; }
dpkg -x erofs-utils_1.5-1_*.deb package
mkdir tree elsewhere
head -c 100000 /dev/urandom >tree/file
mount -t tmpfs none elsewhere
make() { TMPDIR=$place/elsewhere package/usr/bin/mkfs.erofs "$@" tree >log 2>&1; }
make "$place/here.erofs" --chunksize=4096 || { echo "it fails in /tmp as well"; cat log; exit 1; }
make elsewhere/plain.erofs || { echo "it fails without chunks as well"; cat log; exit 1; }
if make elsewhere/chunks.erofs --chunksize=4096; then
  echo "mkfs.erofs behaves otherwise now: an image with chunks outside of /tmp"
  exit 1
fi
grep -q 'Input/output error' log || { cat log; exit 1; }
echo "as found: chunks in /tmp, a plain image elsewhere, and no chunks elsewhere: $(grep -o 'Error 5.*' log)"
