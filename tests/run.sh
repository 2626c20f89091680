#!/bin/sh
# Runs all tests, as two halves side by side: those over real engines mostly wait, the others mostly
# compute. $1 is the interpreter, the rest goes to pytest. The first half is shown when it has ended.
#
# With AGAIN set, tests that failed are run once more, alone, after both halves: what passes only
# then is named, since it is unstable and must be mended, but counts as passed.
set -u
python=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

half() { # name, where…
    name=$1
    shift
    "$python" -m pytest -o cache_dir=".pytest_cache/$name" "$@"
}

half engines "$@" tests/e2e tests/faults >"$folder/engines" 2>&1 &
engines=$!
trap 'kill -INT "$engines"; wait "$engines"; exit 130' INT TERM
half rest "$@" --ignore=tests/e2e --ignore=tests/faults tests
rest=$?
echo "the tests over real engines:"
wait "$engines"
first=$?
cat "$folder/engines"

status=0
for pair in "rest:$rest" "engines:$first"; do
    name=${pair%:*}
    code=${pair#*:}
    [ "$code" = 0 ] && continue
    if [ "$code" = 1 ] && [ -n "${AGAIN:-}" ]; then
        echo "once more, alone: whatever passes now is unstable and must be mended"
        half "$name" --last-failed --last-failed-no-failures none -v && continue
    fi
    status=1
done
exit $status
