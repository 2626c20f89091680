#!/bin/sh
# Format, lints and tests of the guest's agent, where cargo is; says what is skipped where it is not.
set -eu
cd "$(dirname "$0")"
if ! command -v cargo >/dev/null; then
    echo "agent: cargo is missing; its own checks are skipped" >&2
    exit 0
fi
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; fi
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --quiet --locked --offline --jobs 1 --all-targets -- -D warnings
fi
cargo test --quiet --locked --offline --jobs 1
