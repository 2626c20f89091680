#!/bin/sh
# Runs all tests, as three parts side by side: those of whole installations mostly wait, the others
# mostly compute. $1 is the interpreter, the rest goes to pytest. What the parts in the background
# say is shown when they have ended.
#
# With AGAIN set, tests that failed are run once more, alone, after all parts: what passes only
# then is named, since it is unstable and must be mended, but counts as passed.
set -u
python=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

part() { # name, where…
    name=$1
    shift
    "$python" -m pytest -o cache_dir=".pytest_cache/$name" "$@"
}

# Of about the same length. Transactions have no installation under them, but for a few.
ends=$(ls tests/e2e/test_*.py tests/e2e/*/test_*.py)
few='/test_(automatic|barrier|chaos|message|saga|tcc|transaction|xa)'
seen='/console/|/test_(alerts|bank|collection|mesh_tracing|prom|telemetry|traces)'
transactions=$(echo "$ends" | grep -E "$few")
watched=$(echo "$ends" | grep -vE "$few" | grep -E "$seen")
others=$(echo "$ends" | grep -vE "$few" | grep -vE "$seen")
folders=$(ls -d tests/*/ | grep -vE '/(e2e|chaos|__pycache__)/')

# shellcheck disable=SC2086 # each is a list
{
    part engines "$@" $others >"$folder/engines" 2>&1 &
    engines=$!
    part watched "$@" $watched >"$folder/watched" 2>&1 &
    watching=$!
    trap 'kill -INT "$engines" "$watching"; wait "$engines" "$watching"; exit 130' INT TERM
    part rest "$@" $folders $transactions
    rest=$?
}
echo "the tests of whole installations:"
wait "$engines"
first=$?
cat "$folder/engines"
echo "the tests of what is seen of them:"
wait "$watching"
second=$?
cat "$folder/watched"

status=0
for pair in "rest:$rest" "engines:$first" "watched:$second"; do
    name=${pair%:*}
    code=${pair#*:}
    [ "$code" = 0 ] && continue
    if [ "$code" = 1 ] && [ -n "${AGAIN:-}" ]; then
        echo "once more, alone: whatever passes now is unstable and must be mended"
        part "$name" --last-failed --last-failed-no-failures none -v && continue
    fi
    status=1
done
exit $status
