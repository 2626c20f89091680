#!/bin/sh
# Prepares the virtual environment given as $1 from the hashed lock; says what is missing if it can't.
set -eu
venv=$1
python=${PYTHON:-python3}

say() { printf 'setup: %s\n' "$*" >&2; }

command -v "$python" >/dev/null || { say "$python is missing; install Python 3.11 or later"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$("$python" --version) is too old; Bedstone needs 3.11 or later (set PYTHON=…)"; exit 1; }

if [ ! -x "$venv/bin/python" ]; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing python3-venv"
            apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        else
            say "Python's venv module is missing; install it (Debian: apt-get install python3-venv)"
            exit 1
        fi
    fi
    "$python" -m venv "$venv"
fi
# The lock is complete: nothing is left to resolve, so a release made after it changes nothing.
say "installing into $venv (a minute or two the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --require-hashes --no-deps -r requirements/dev.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --no-build-isolation -e .
say "done: $venv/bin/bedstone is the command; try $venv/bin/bedstone up examples/bank"
