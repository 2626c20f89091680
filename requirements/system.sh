#!/bin/sh
# Installs the distribution packages that only tests need; says what is skipped where it may not.
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }

if command -v mariadbd >/dev/null || [ -x /usr/sbin/mariadbd ] || [ -x /usr/local/sbin/mariadbd ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing mariadb-server-core, for the tests of transactions (no server is started)"
    export DEBIAN_FRONTEND=noninteractive
    if { apt-get update -qq && apt-get install -y -qq --no-install-recommends mariadb-server-core; } \
        >/dev/null 2>&1; then
        exit 0
    fi
    say "it cannot be installed"
fi
say "MariaDB is missing; the tests that need it are skipped (Debian: apt-get install mariadb-server)"
