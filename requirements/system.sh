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
qemu-system-x86_64 qemu-system-x86 the tests of boxes as virtual machines
mkfs.erofs erofs-utils the tests of boxes as virtual machines
mkfs.ext4 e2fsprogs the tests of boxes as virtual machines
LIST
}

# A kernel for guests, unpacked and not installed: the machine's own way to start stays as it is.
guest=/usr/local/lib/bedstone/guest
kernel() {
    [ "$(uname -m)" = x86_64 ] || return 0
    for image in /boot/vmlinuz-*-cloud-amd64 $guest/boot/vmlinuz-*-cloud-amd64; do
        if [ -e "$image" ]; then return 0; fi
    done
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "unpacking a kernel for guests into $guest"
    apt-get update -qq >/dev/null 2>&1 || true
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    folder=$(mktemp -d)
    (
        cd "$folder" && chmod 0755 . && apt-get download -qq "$package" >/dev/null 2>&1 &&
            dpkg-deb -x ./*.deb unpacked && mkdir -p "$guest" && cp -r unpacked/boot unpacked/lib "$guest"
    ) && status=0 || status=1
    rm -rf "$folder"
    return $status
}

kernel || say "no kernel for guests; the tests of boxes as virtual machines are skipped (Debian: apt-get install linux-image-cloud-amd64)"

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
