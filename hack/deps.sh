#!/usr/bin/env bash
# Installs what `make test` and `make demo` need on Debian and Ubuntu, and nothing that is
# there already: with nothing to do it takes a fraction of a second and asks no mirror.
#
#   hack/deps.sh test   packages of TEST_PACKAGES, and further HAProxy branches below .deps/haproxy/<branch>/
#   hack/deps.sh demo   haproxy, unless one is on PATH
#
# Calls itself as `unpack SUITE MIRROR KEYRING`.
#
# DEBIAN_MIRROR   where newer and older Debian suites are; default: the Debian mirror in apt's own
#                 sources. On Ubuntu, which has none there, it has to be named.
set -euo pipefail
cd "$(dirname "$0")/.."

# package, the program that shows it is there, what uses it
TEST_PACKAGES=(
  'haproxy    haproxy     internal/haproxy, internal/bridge, cmd/bridged: the branch operators of this machine run'
  'patchelf   patchelf    hack/deps.sh: further HAProxy branches run with their own libc'
  'zookeeper  /usr/share/zookeeper/bin/zkServer.sh  internal/provision: rendered ensembles are started for real'
  'cloud-init cloud-init  internal/provision: the schema of rendered user-data'
)

# suite, whether its absence is an error, why it is here
HAPROXY_SUITES=(
  'bullseye optional  2.2: the oldest branch; older mirrors drop it'
  'trixie   required  3.0: dynamic servers'
  'forky    optional  3.2 or newer'
)

say() { printf 'deps: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "needs root to run: $* (no sudo here; run it yourself, then again)"
  fi
}

need_apt() {
  command -v apt-get >/dev/null || die "no apt-get here: install $* by hand"
}

# install PACKAGE...
install_packages() {
  need_apt "$*"
  say "installing $* with apt-get"
  # Daemons that come with a package must not start: the tests run their own.
  local policy=/usr/sbin/policy-rc.d made=
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    made=$policy
  fi
  local result=0
  local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install)
  # The index of a fresh machine may be missing or too old for the mirror: one retry after an update.
  as_root "${get[@]}" "$@" >/dev/null 2>&1 ||
    { as_root apt-get -qq update && as_root "${get[@]}" "$@" >&2; } || result=$?
  if [[ -n $made ]]; then as_root rm -f "$made"; fi
  [[ $result == 0 ]] || die "apt-get could not install $*"
}

# Debian keeps /usr/sbin off the PATH of users.
have() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]]; }

test_packages() {
  local line package command missing=()
  for line in "${TEST_PACKAGES[@]}"; do
    read -r package command _ <<<"$line"
    have "$command" || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] && return
  # Here cloud-init is a schema checker and must never configure the machine at its next boot.
  if [[ " ${missing[*]} " == *' cloud-init '* && ! -e /etc/cloud ]]; then
    as_root mkdir -p /etc/cloud
    as_root touch /etc/cloud/cloud-init.disabled
  fi
  install_packages "${missing[@]}"
}

mirror() {
  if [[ -n ${DEBIAN_MIRROR:-} ]]; then
    printf '%s\n' "${DEBIAN_MIRROR%/}"
    return
  fi
  # Any component of the main archive will do; security and ports archives have other paths.
  local found
  found=$(configured_mirror)
  if [[ -z $found ]]; then # apt names only what it has an index of
    as_root apt-get update -qq >&2
    found=$(configured_mirror)
  fi
  [[ -n $found ]] || die 'no Debian mirror in the sources of apt: name one, as in DEBIAN_MIRROR=http://HOST/debian make deps'
  printf '%s\n' "${found%/}"
}

configured_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -E '/debian/?$' | head -n 1 || true
}

# unpack SUITE MIRROR KEYRING: HAProxy of a Debian suite with all libraries into .deps/haproxy/<branch>/, through an
# apt of its own, so that signatures are checked and the machine's packages are not touched.
unpack() {
  local suite=$1 from=$2 keyring=$3 work version branch target interpreter
  # Below .deps, not /tmp: it is renamed into place.
  work=$PWD/.deps/tmp.$suite
  rm -rf "$work"
  mkdir -p "$work"/{etc,state/lists/partial,cache/archives/partial,root}
  : >"$work/status"
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$from" "$suite" >"$work/etc/sources.list"
  local apt=(
    -qq
    -o "Dir::Etc::SourceList=$work/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
    -o "Dir::State=$work/state" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root
    # A mirror that is a snapshot has an old Release file, rightly signed.
    -o Acquire::Check-Valid-Until=false
    -o Debug::NoLocking=true
  )
  apt-get "${apt[@]}" update >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  # Nothing counts as installed there, so this fetches libc and every other library too.
  apt-get "${apt[@]}" -y --no-install-recommends --download-only install haproxy >>"$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
  local deb
  for deb in "$work"/cache/archives/*.deb; do
    case ${deb##*/} in
      # Only needed by maintainer scripts, which do not run.
      perl* | adduser* | passwd* | dpkg* | debconf* | login* | coreutils* | tar_*) ;;
      *) dpkg-deb -x "$deb" "$work/root" ;;
    esac
  done
  cp "$work/root/usr/sbin/haproxy" "$work/haproxy"
  version=$(dpkg-deb -f "$work"/cache/archives/haproxy_*.deb Version)
  branch=$(sed -E 's/^([0-9]+:)?([0-9]+\.[0-9]+).*/\2/' <<<"$version")
  target=$PWD/.deps/haproxy/$branch

  # Its own loader and libraries are written into the program: a wrapper script would be lost when the
  # master executes itself anew at a reload. RPATH, not RUNPATH, so that it holds for libraries of
  # libraries and for what libc opens by itself.
  interpreter=$(patchelf --print-interpreter "$work/haproxy")
  interpreter=$(cd "$work/root" && find . -name "${interpreter##*/}" | head -n 1)
  local dirs
  dirs=$(cd "$work/root" && find . -name '*.so*' -printf '%h\n' | sort -u |
    grep -E '^\./(usr/)?lib(64)?(/[a-z0-9_-]*linux-gnu[a-z0-9]*)?$' | sed "s,^\.,$target/root," | paste -sd:)
  patchelf --set-interpreter "$target/root/${interpreter#./}" --force-rpath --set-rpath "$dirs" "$work/haproxy"
  rm -rf "$work"/{cache,state,etc,status,log}
  mkdir -p .deps/haproxy
  rm -rf "$target"
  mv "$work" "$target"
  "$target/haproxy" -v >/dev/null || die "$target/haproxy does not run"
  printf '%s %s\n' "$PWD" "$branch" >".deps/haproxy/.$suite"
  say "HAProxy $version of $suite is .deps/haproxy/$branch/haproxy"
}

haproxies() {
  local line suite must from keyring at branch missing=()
  for line in "${HAPROXY_SUITES[@]}"; do
    read -r suite must _ <<<"$line"
    # The loader's path is part of the program, so a moved tree needs it anew. `-` marks a suite that
    # the mirror does not carry.
    if [[ -e .deps/haproxy/.$suite ]]; then
      at='' branch=''
      read -r at branch <".deps/haproxy/.$suite" || true
      if [[ $at == "$PWD" && ($branch == - || -x .deps/haproxy/$branch/haproxy) ]]; then
        continue
      fi
    fi
    missing+=("$suite $must")
  done
  [[ ${#missing[@]} == 0 ]] && return
  need_apt 'HAProxy 3.x'
  from=$(mirror)
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [[ -e $keyring ]] || keyring=/usr/share/keyrings/debian-archive-keyring.pgp
  if [[ ! -e $keyring ]]; then
    install_packages debian-archive-keyring
    keyring=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' | head -n 1)
  fi
  mkdir -p .deps/haproxy
  for line in "${missing[@]}"; do
    read -r suite must <<<"$line"
    say "unpacking HAProxy of Debian $suite from $from"
    # A process of its own: bash would ignore failures inside a function that is a condition.
    if ! hack/deps.sh unpack "$suite" "$from" "$keyring"; then
      rm -rf ".deps/tmp.$suite"
      [[ $must == optional ]] || die "no HAProxy from $from $suite: see above; DEBIAN_MIRROR names another mirror"
      printf '%s -\n' "$PWD" >".deps/haproxy/.$suite"
      say "the mirror has no $suite: its tests are left out (rm .deps/haproxy/.$suite to try again)"
    fi
  done
}

case ${1:-} in
  test)
    test_packages
    haproxies
    ;;
  unpack)
    unpack "$2" "$3" "$4"
    ;;
  demo)
    have haproxy || install_packages haproxy
    ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
