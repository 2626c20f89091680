#!/bin/sh
# Installs the distribution packages that only tests need; says what is skipped where it may not.
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }

there() { # PROGRAM: it can be run; or PATH: it is there
    case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/usr/local/sbin/$1" ] ;;
    esac
}

# PROGRAM-OR-PATH PACKAGE WHAT-NEEDS-IT
missing() {
    while read -r program package what; do
        there "$program" || printf '%s %s\n' "$package" "$what"
    done <<LIST
mariadbd mariadb-server-core the tests of transactions over MariaDB
my_print_defaults mariadb-client-core the tests of transactions over MariaDB
prometheus prometheus the tests of PromQL and remote-write beside Prometheus
chromium chromium the tests of the console in a browser
umoci umoci the tests of images beside umoci
fsck.erofs erofs-utils the tests of lazily mounted images beside erofs-utils
busybox busybox-static the tests of images that run
skopeo skopeo the tests of images beside skopeo
/usr/share/fonts/truetype/dejavu fonts-dejavu-core the tests of the console in a browser
runc runc the tests of boxes as containers
runsc runsc the tests of boxes in gVisor
busybox busybox-static the tests of boxes
LIST
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    packages=$(printf '%s\n' "$wanted" | cut -d' ' -f1)
    say "installing" $packages "for tests"
    export DEBIAN_FRONTEND=noninteractive
    export RUNLEVEL=1 # packages start no service then; under systemd, prometheus's does
    apt-get update -qq >/dev/null 2>&1 || true
    for package in $packages; do
        apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 || true
    done
fi

missing | while read -r package what; do
    say "$package is missing; $what are skipped (Debian: apt-get install $package)"
done
