# shellcheck shell=bash
# What scripts/demo, scripts/test and scripts/check share: saying what happens, and getting what is missing. Sourced, never run.

# Where the project is, whatever directory the caller was in.
CRFS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$CRFS_ROOT" || exit

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() {
  printf '\n%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# need_packages WHY PACKAGE...: installs, by apt, those that are not there yet, and says which and why.
need_packages() {
  local why=$1 package missing=()
  shift
  command -v dpkg-query >/dev/null || {
    echo "This is not Debian or Ubuntu; needed for $why, under whatever names it has here: $*"
    return 0
  }
  for package; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "these packages are missing: ${missing[*]} (for $why). Run this as root, or: sudo apt-get install ${missing[*]}"
  say "installing for $why: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq </dev/null
  apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}

# wanted_rust: the oldest Rust that builds crfs, as Cargo.toml has it.
wanted_rust() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml; }

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

cargo_is_good() {
  local have
  have=$(cargo --version 2>/dev/null | awk '{ print $2 }')
  [ -n "$have" ] && version_at_least "$have" "$(wanted_rust)"
}

# apt_version PACKAGE: the upstream version that apt would install, or nothing.
apt_version() { apt-cache policy "$1" | sed -n 's/^ *Candidate: \([0-9.]*[0-9]\).*/\1/p'; }

# The packages that bring a good cargo here, nothing where apt has none: Debian's own; the newer one that Debian keeps for building
# browsers in an old release; Ubuntu's with the version in the name.
cargo_packages() {
  local suffix version
  command -v apt-cache >/dev/null || return 0
  for suffix in "" -web $(apt-cache pkgnames cargo-1. | sed -n 's/^cargo\(-1\.[0-9]*\)$/\1/p' | sort -rV); do
    version=$(apt_version "cargo$suffix")
    if [ -n "$version" ] && version_at_least "$version" "$(wanted_rust)"; then
      echo "cargo$suffix" "rustc$suffix"
      return 0
    fi
  done
}

# need_cargo: a cargo that can build crfs, from apt where apt has one; otherwise says what to do.
need_cargo() {
  need_packages "the linker, the C parts of two libraries, and what cargo trusts" gcc libc6-dev ca-certificates
  [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  export PATH
  cargo_is_good && return 0
  local packages
  [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || apt-get update -qq </dev/null
  packages=$(cargo_packages)
  [ -n "$packages" ] || die "crfs needs Rust $(wanted_rust) or newer; here is: $(cargo --version 2>/dev/null || echo none), and apt has none that is new enough.
Install it with rustup (https://rustup.rs), as the user that runs this:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
then run this again."
  # shellcheck disable=SC2086  # one word per package is meant
  need_packages "the compiler" $packages
  case $packages in cargo-1.*) PATH="/usr/lib/rust-${packages##*-}/bin:$PATH" ;; esac
  cargo_is_good || die "apt brought $(cargo --version 2>&1), but crfs needs Rust $(wanted_rust)"
}

# fuse_trouble: says why FUSE cannot be used here, or nothing.
fuse_trouble() {
  [ -e /dev/fuse ] || { [ "$(id -u)" = 0 ] && modprobe fuse 2>/dev/null; } || true
  if [ ! -e /dev/fuse ]; then
    echo "there is no /dev/fuse (load the kernel's fuse module; in a container, pass the device: --device /dev/fuse)"
  elif [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
    echo "/dev/fuse may not be opened by $(id -un) (distributions give it mode 0666)"
  elif [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then
    echo "without root crfs mounts by fusermount3, which is not here (package fuse3)"
  fi
}
