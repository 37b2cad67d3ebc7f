#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs what this repository's commands need on Debian 12 and 13, and says what it installs.
#
#   tools/host-setup.sh demo     make demo, make machine: throw-away machines in systemd-nspawn
#   tools/host-setup.sh test     make check, make test: the above, VMs, linters, unit tests
#   tools/host-setup.sh full     make test-full: the above, and what tries packages out
#
# With everything there it takes a few hundredths of a second and needs neither root nor network.
# Python's linters come from PyPI, at the versions named here, into a virtual environment in the
# cache directory; all else comes from the distribution. Nothing is started.
set -eu

cache=${JOBLET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/joblet}
venv=$cache/venv
python=/usr/bin/python3

demo='python3 passwd mmdebstrap systemd-container ca-certificates'
machines='qemu-system-x86 qemu-utils busybox-static kmod e2fsprogs lz4 zstd'
libraries='python3-grpcio python3-protobuf python3-dbus-next python3-cryptography python3-systemd
    python3-yaml python3-click python3-seccomp python3-zstandard libdeflate0 protobuf-compiler
    protobuf-compiler-grpc'
checks='python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis python3-venv
    python3-setuptools python3-wheel
    shellcheck codespell bash zsh fish groff-base mandoc man-db'
trials='piuparts'
pins='ruff==0.17.6 mypy==2.4.1 vulture==2.16 types-PyYAML==6.0.12.20261113
    types-protobuf==7.35.1.20260906 grpc-stubs==1.53.0.6'

say() {
    echo "host-setup: $*"
}

# fail WHAT WHY [NEXT]: one line, and what to do about it
fail() {
    echo "error: cannot $1: $2${3:+; $3}" >&2
    exit 1
}

missing() {
    command -v dpkg-query >/dev/null 2>&1 ||
        fail "set this host up" "it has no dpkg" "use Debian 12 or 13, or a container of it"
    # shellcheck disable=SC2086 # a list of names
    there=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $1 2>/dev/null || :)
    for package in $1; do
        case "
$there
" in
        *"
installed $package
"*) ;;
        *) echo "$package" ;;
        esac
    done
    # roots of the newer suite are made with its keys, which early Debian 12 did not have
    [ -e /usr/share/keyrings/debian-archive-trixie-stable.gpg ] || echo debian-archive-keyring
}

check_host() {
    id='' version='' name=''
    [ ! -r /etc/os-release ] || while IFS='=' read -r key value; do
        value=${value#\"} value=${value%\"}
        case $key in
        ID) id=$value ;;
        VERSION_ID) version=$value ;;
        PRETTY_NAME) name=$value ;;
        esac
    done </etc/os-release
    case $id-$version in
    debian-12 | debian-13) ;;
    *) fail "install packages" "this is ${name:-an unknown system}" \
        "use Debian 12 or 13, or a container of it, or install by hand: $1" ;;
    esac
    [ "$(id -u)" = 0 ] || fail "install packages" "that needs root" "missing: $1"
}

# quietly LOG COMMAND...: its output goes to LOG
quietly() {
    log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null
}

install_packages() {
    begun=$(date +%s)
    packages=$(missing "$1")
    [ -n "$packages" ] || return 0
    # shellcheck disable=SC2086,SC2116 # a list, on one line
    packages=$(echo $packages)
    check_host "$packages"
    say "installing Debian packages: $packages"
    logs=$(mktemp -d)
    export DEBIAN_FRONTEND=noninteractive
    updated=yes
    quietly "$logs/update" apt-get -q -o DPkg::Lock::Timeout=300 update || updated=no
    # shellcheck disable=SC2086 # a list of names
    if ! quietly "$logs/install" apt-get -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install $packages; then
        tail -n 15 "$logs/update" "$logs/install" >&2
        rm -rf "$logs"
        if [ $updated = no ]; then
            fail "install packages" "apt-get update failed" \
                "see above; is the network there, and are the sources in /etc/apt right?"
        fi
        fail "install packages" "apt-get install failed" "see above"
    fi
    rm -rf "$logs"
    say "packages installed in $(($(date +%s) - begun)) s"
}

# The stamp is written last, so a venv with the right stamp is whole.
install_tools() {
    stamp="$(readlink -f $python) $pins"
    [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    mkdir -p "$cache"
    exec 9>"$cache/venv.lock"
    flock 9 # somebody else may be making it
    [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    begun=$(date +%s)
    # shellcheck disable=SC2086 # a list, on one line
    say "installing linters from PyPI into $venv:" $pins
    rm -rf "$venv"
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of requirements
    if ! quietly "$log" $python -m venv --system-site-packages "$venv" ||
        ! quietly "$log" "$venv/bin/pip" --disable-pip-version-check install $pins; then
        tail -n 15 "$log" >&2
        rm -rf "$log" "$venv"
        fail "install linters" "pip failed" "see above; is PyPI or a mirror of it reachable?"
    fi
    rm -f "$log"
    printf '%s' "$stamp" >"$venv/stamp"
    say "linters installed in $(($(date +%s) - begun)) s"
}

case ${1:-} in
demo) install_packages "$demo" ;;
test | full)
    [ "$1" = test ] || checks="$checks $trials"
    install_packages "$demo $machines $libraries $checks"
    install_tools
    ;;
*)
    echo "usage: tools/host-setup.sh demo | test | full" >&2
    exit 2
    ;;
esac
