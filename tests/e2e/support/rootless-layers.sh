#!/bin/sh
# podman of the ordinary user nobody pulls from a registry, with a layer store of its own, in a mount namespace of its own where /dev/fuse, /etc/subuid and
# /etc/subgid are what distributions make them:
#
#     rootless-layers.sh DIR CRFS IMAGE COPY FILES
#
# DIR is for scratch; the user may run CRFS pull IMAGE by plain HTTP, and push it to COPY. FILES are in the image's /bin.
set -eu
if [ "${1:-}" != --inside ]; then
  exec unshare --mount --propagation private sh "$0" --inside "$@"
fi
shift
scratch=$1 crfs=$2 image=$3 copy=$4 files=$5
dir=/mnt
mount --bind "$scratch" "$dir"
echo "nobody:100000:65536" > "$dir/ids"
for file in /etc/subuid /etc/subgid; do
  mount --bind "$dir/ids" "$file"
done
# A tmpfs, since the directory may lie on a filesystem that allows no devices.
mkdir "$dir/dev"
mount -t tmpfs -o mode=0755 tmpfs "$dir/dev"
mknod -m 0666 "$dir/dev/fuse" c 10 229
mount --bind "$dir/dev/fuse" /dev/fuse
install -d -o nobody -m 0700 "$dir/home" "$dir/run"
cd "$dir/home"
as_user() {
  setpriv --reuid "$(id -u nobody)" --regid "$(id -g nobody)" --clear-groups env HOME="$dir/home" XDG_RUNTIME_DIR="$dir/run" "$@"
}
run_podman() {
  as_user podman --runtime=runc --cgroup-manager=cgroupfs --events-backend=file "$@"
}
server=
workers() {
  cat "/proc/$server/task/$server/children" 2> /dev/null || :
}
clean_up() {
  # shellcheck disable=SC2046 # Several.
  [ -z "$server" ] || kill -9 "$server" $(workers) 2> /dev/null || :
  if pause=$(cat "$dir/run/libpod/tmp/pause.pid" 2> /dev/null); then kill -9 "$pause" || :; fi
}
trap clean_up EXIT

# podman starts nothing, `podman unshare` neither, while the layer store that it is told of cannot be looked at: so the server is started without that.
plain="$dir/home/plain.conf"
printf '[storage]\ndriver = "overlay"\n' | as_user tee "$plain" > /dev/null
# $1: a log that says when the server can be used.
serve() {
  # shellcheck disable=SC2016 # The inner shell's.
  as_user env CONTAINERS_STORAGE_CONF="$plain" podman --cgroup-manager=cgroupfs unshare sh -c 'echo $$ > "$HOME/pid"; exec "$@"' \
    sh "$crfs" store serve --layers --whole-layer-below=0 > /dev/null 2> "$1" &
  tries=0
  until grep -qs "crfs: serving" "$1"; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { cat "$1"; exit 1; }
    sleep 0.1
  done
  server=$(cat "$dir/home/pid")
}
serve "$dir/log"
conf="$dir/home/.config/containers/storage.conf"
as_user mkdir -p "${conf%/*}"
as_user "$crfs" store config --layers > "$dir/conf"
# Buildah wants to be told the places that are podman's by default.
places="runroot = \"$dir/run/containers\"\ngraphroot = \"$dir/home/.local/share/containers/storage\""
sed "s|^driver = .*|&\n$places|" "$dir/conf" | as_user tee "$conf" > /dev/null

# How many layers of podman's own stand on one of the store.
lazy() {
  find "$dir/home/.local/share/containers/storage/overlay" -maxdepth 2 -name diff -type l | wc -l
}
run_podman pull -q --tls-verify=false "$image"
[ "$(lazy)" = 1 ]
limits="--rm --network=none --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000"
script='stat -c %u:%g /bin/busybox; echo x > /bin/new; chown 5:6 /bin/busybox; stat -c %u:%g /bin/busybox /bin/new; rm /bin/zcat; ls /bin | wc -l'
# $1: options of podman, $2: of podman run
run() {
  # shellcheck disable=SC2086 # None, or several.
  got=$(run_podman $1 run $2 $limits "$image" /bin/busybox sh -c "$script" | tr '\n' ' ')
  [ "$got" = "0:0 5:6 0:0 $files " ] || { echo "got with $*: $got"; exit 1; }
}
run "" ""
run "" "--userns=auto"
run "" "--uidmap=0:1:1000 --gidmap=0:1:1000"
store="$dir/home/.local/share/crfs/store"
run "--storage-opt overlay.additionallayerstore=$store/layers:ref --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs" ""
# As for any image (rootless-store.sh).
above="$dir/home"
for part in . .local share containers storage overlay; do
  above="$above/$part"
  as_user chmod a+x "$above"
done
as_user chmod a+x "${store%/*}" "$store"
# shellcheck disable=SC2086 # Several words.
[ "$(run_podman run --userns=keep-id $limits "$image" /bin/busybox id -u)" = "$(id -u nobody)" ]
run_podman push -q --tls-verify=false "$image" "$copy"
if command -v buildah > /dev/null; then
  # By itself it does not see what is mounted in podman's namespace.
  # shellcheck disable=SC2016
  run_podman unshare sh -euc '
    container=$(buildah from --tls-verify=false "$1")
    root=$(buildah mount "$container")
    test -s "$root/bin/busybox"
    echo new > "$root/new"
    buildah umount "$container"
    buildah commit -q "$container" localhost/built:1
    buildah rm "$container"' sh "$image" > /dev/null
  # shellcheck disable=SC2086
  [ "$(run_podman run $limits localhost/built:1 /bin/busybox cat /new)" = new ]
  run_podman rmi -f localhost/built:1
fi
[ "$(lazy)" = 1 ]
# Nobody is left to clear up, and podman finds a dead mount, until there is a server again.
# shellcheck disable=SC2046 # Several.
kill -9 "$server" $(workers)
if run_podman images 2> "$dir/refused"; then exit 1; fi
serve "$dir/log-again"
run "" ""
run_podman rmi -f "$image" > /dev/null
[ "$(lazy)" = 0 ]
as_user grep -q '"uses": 0' "$store/crfs/store.json"
if as_user grep '"uses": [1-9]' "$store/crfs/store.json"; then exit 1; fi
