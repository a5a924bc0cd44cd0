#!/bin/sh
# podman of the ordinary user nobody and a store, in a mount namespace of its own where /dev/fuse, /etc/subuid and /etc/subgid are what distributions make
# them:
#
#     rootless-store.sh own|shared DIR CRFS IMAGE MORE FILES
#
# DIR is for scratch; the user may read IMAGE and MORE, layouts, and run CRFS. FILES are in the image's /bin.
#
# own: the user's own server, in podman unshare. shared: root's server, which gives the user the store.
set -eu
if [ "${1:-}" != --inside ]; then
  exec unshare --mount --propagation private sh "$0" --inside "$@"
fi
shift
how=$1 scratch=$2 crfs=$3 image=$4 more=$5 files=$6
# A home lies below directories that are root's alone. In a user namespace root is an unknown user, and what such a user has put into /tmp is not used.
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
# $1: a log that says when a server can be used.
wait_for() {
  tries=0
  until grep -qs "crfs: serving" "$1"; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { cat "$1"; exit 1; }
    sleep 0.1
  done
}
server=
# Those who serve it: the process that was started keeps it.
workers() {
  cat "/proc/$server/task/$server/children" 2> /dev/null || :
}
# Kills who serves, and waits for who serves then.
kill_worker() {
  before=$(workers)
  # shellcheck disable=SC2086 # Mostly one.
  kill -9 $before
  tries=0
  until after=$(workers) && [ -n "$after" ] && [ "$after" != "$before" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 1
    sleep 0.1
  done
}
clean_up() {
  # shellcheck disable=SC2046 # Several.
  [ -z "$server" ] || kill -9 "$server" $(workers) 2> /dev/null || :
  if pause=$(cat "$dir/run/libpod/tmp/pause.pid" 2> /dev/null); then kill -9 "$pause" || :; fi
}
trap clean_up EXIT

conf="$dir/home/.config/containers/storage.conf"
as_user mkdir -p "${conf%/*}"
if [ "$how" = own ]; then
  store="$dir/home/.local/share/crfs/store"
  as_user "$crfs" store config > "$dir/conf"
  as_user tee "$conf" < "$dir/conf" > /dev/null
  as_user mkdir -p "$store"
  # shellcheck disable=SC2016 # The inner shell's.
  run_podman unshare sh -c 'echo $$ > "$HOME/pid"; exec "$@"' sh "$crfs" store serve > /dev/null 2> "$dir/log" &
  wait_for "$dir/log"
  server=$(cat "$dir/home/pid")
  run_podman unshare "$crfs" store add --full --name localhost/busy:1 "oci:$image"
else
  # As systemd has it: a process that has been in a namespace for long sees what is mounted and unmounted outside of it.
  mount --make-rshared /
  # Also where the administrator's files are for nobody else.
  umask 077
  root="$dir/store"
  "$crfs" store serve --root "$root" --cache-dir "$dir/cache" > /dev/null 2> "$dir/log" &
  server=$!
  wait_for "$dir/log"
  [ "$(stat -c %a "$root")" = 700 ]
  "$crfs" store add --root "$root" --full --name localhost/busy:1 "oci:$image"
  store=$("$crfs" store share --root "$root" --user nobody)
  as_user "$crfs" store config --root "$store" > "$dir/conf"
  as_user tee "$conf" < "$dir/conf" > /dev/null
  # It is that user's, and nobody else's: no other user of the machine has any of the layers.
  [ "$(stat -c %a "$root" "$store" | tr '\n' ' ')" = "711 750 " ]
  as_user ls "$store/overlay/l" > /dev/null
  for place in "$store" "$store/overlay" "$root/overlay" "$root/crfs"; do
    if setpriv --reuid daemon --regid daemon --clear-groups ls "$place" 2> /dev/null; then exit 1; fi
  done
  umask 022
fi

run_podman images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}' | grep -x 'localhost/busy:1 true'
script='stat -c %u:%g /bin/busybox; echo x > /bin/new; chown 5:6 /bin/busybox; stat -c %u:%g /bin/busybox /bin/new; rm /bin/zcat; ls /bin | wc -l'
expected="0:0 5:6 0:0 $files"
# $1: options of podman, $2: of podman run
run() {
  # shellcheck disable=SC2086 # None, or several.
  got=$(run_podman $1 run $2 --rm --network=none --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000 localhost/busy:1 /bin/busybox sh -c "$script" | tr '\n' ' ')
  [ "$got" = "$expected " ] || { echo "got: $got"; exit 1; }
}
run "" ""
run "" "--userns=auto"
run "" "--uidmap=0:1:1000 --gidmap=0:1:1000"
kill_worker
run "" ""
kill_worker
run "" "--userns=auto"
# Root of such a container is another user than the one who owns what lies above its root, and runc wants to pass. podman 4.3 lets it, once a first
# container has failed ("permission denied"); podman 5 does not. So it is with an image that was pulled, too.
above="$dir/home"
for part in . .local share containers storage overlay; do
  above="$above/$part"
  as_user chmod a+x "$above"
done
keep_id="run --rm --userns=keep-id --network=none --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000 localhost/busy:1 /bin/busybox"
# shellcheck disable=SC2086 # Several words.
[ "$(run_podman $keep_id stat -c %u:%g /bin/busybox)" = 0:0 ]
# shellcheck disable=SC2086
[ "$(run_podman $keep_id id -u)" = "$(id -u nobody)" ]
[ "$how" = shared ] || run "--storage-opt overlay.imagestore=$store --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs" ""
# Of the tar-split and the layer's files, whose digest podman compares.
run_podman save -q --format oci-dir -o "$dir/home/saved" localhost/busy:1
test -s "$dir/home/saved/index.json"

if [ "$how" = shared ]; then
  container=$(run_podman create --network=none --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000 localhost/busy:1 sh)
  # root's store knows of the user's container, where that is at its default place in their home.
  if "$crfs" store rm --root "$root" --podman-root "$dir/home/.local/share/containers/storage" localhost/busy:1 2> "$dir/refused"; then exit 1; fi
  grep "is used by the container" "$dir/refused"
  # Without the server all goes on that reads no layers.
  tries=0
  while grep -q " $store/overlay " /proc/mounts || [ -n "$(workers)" ]; do
    kill "$server"
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 1
    sleep 0.1
  done
  wait "$server" || :
  run_podman ps -a --format '{{.ID}}' --no-trunc | grep -x "$container"
  run_podman images --format '{{.Repository}}:{{.Tag}}' | grep -x localhost/busy:1
  run_podman inspect "$container" localhost/busy:1 > /dev/null
  # What podman makes on top of a layer has the owner of the layer's root: the user.
  [ "$(stat -L -c %u "$store"/overlay/l/*)" = "$(id -u nobody)" ]
  # An image comes while nobody serves, and the next server gives the user the store again.
  "$crfs" store add --root "$root" --name localhost/more:1 "oci:$more"
  [ "$(find "$store/overlay/l" -type l | wc -l)" -ge 2 ]
  run_podman rm "$container"
  "$crfs" store serve --root "$root" --cache-dir "$dir/cache" > /dev/null 2> "$dir/log-again" &
  server=$!
  wait_for "$dir/log-again"
  grep " $store/overlay fuse.crfs " /proc/mounts
  kill_worker
  run_podman run --rm --network=none --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000 localhost/busy:1 /bin/busybox true
  "$crfs" store share --root "$root" --user nobody --stop
  if grep " $store/overlay " /proc/mounts; then exit 1; fi
  [ "$(stat -c %a "$root")" = 700 ]
fi
