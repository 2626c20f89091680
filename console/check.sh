#!/bin/sh
# Check the console's front end: types, unit tests, and that what is committed is what is built.
set -eu
cd "$(dirname "$0")"
../.venv/bin/python generate.py --check
if ! command -v npm >/dev/null; then
    echo "console: skipped: npm is missing; install Node.js 20 or later to check the front end"
    exit 0
fi
stamp=node_modules/.package-lock.json
if [ ! -e "$stamp" ] || [ package-lock.json -nt "$stamp" ]; then npm ci --silent; touch "$stamp"; fi
npm run --silent types
npm run --silent test
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
npm run --silent build:into -- "$built"
if ! diff -rq "$built" ../src/bedstone/console/static; then
    echo "console: src/bedstone/console/static is not current: run make console" >&2
    exit 1
fi
echo "console: current"
