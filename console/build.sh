#!/bin/sh
# Build the console's front end into src/bedstone/console/static, from the locked packages.
set -eu
cd "$(dirname "$0")"
command -v npm >/dev/null || { echo "console: npm is missing; install Node.js 20 or later" >&2; exit 1; }
../.venv/bin/python generate.py
stamp=node_modules/.package-lock.json
if [ ! -e "$stamp" ] || [ package-lock.json -nt "$stamp" ]; then npm ci --silent; touch "$stamp"; fi
npm run --silent build
