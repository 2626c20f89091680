#!/bin/sh
# Builds the guest's agent, static, to where the package looks for it (or to the path given).
set -eu
cd "$(dirname "$0")"

out=${1:-../src/bedstone/sandbox/microvm/bedstone-agent}
if [ "$(uname -m)" != x86_64 ]; then
    echo "agent: guests are x86_64 only" >&2
    exit 1
fi
target=x86_64-unknown-linux-musl
if ! [ -d "$(rustc --print target-libdir --target $target)" ]; then
    target=x86_64-unknown-linux-gnu # larger, and as static
    export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
fi
cargo build --quiet --locked --offline --release --jobs 1 --target $target
# Replaced, not written to: a guest may be starting from the old one.
cp "${CARGO_TARGET_DIR:-target}/$target/release/bedstone-agent" "$out.new"
mv "$out.new" "$out"
