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
    "$python" -m pytest -o cache_dir=".pytest_cache/$name" --durations=10 "$@"
}

# Of about the same length: transactions, and what is seen of installations; installations; the rest.
ends=$(ls tests/e2e/test_*.py tests/e2e/*/test_*.py)
some='/console/|/test_(alerts|automatic|bank|barrier|chaos|collection|mesh_tracing|message|prom|saga)'
more='/test_(tcc|telemetry|traces|transaction|xa)'
seen=$(echo "$ends" | grep -E "$some|$more")
others=$(echo "$ends" | grep -vE "$some|$more")
folders=$(ls -d tests/*/ | grep -vE '/(e2e|chaos|__pycache__)/')

# shellcheck disable=SC2086 # each is a list
{
    part engines "$@" $others >"$folder/engines" 2>&1 &
    engines=$!
    part seen "$@" $seen >"$folder/seen" 2>&1 &
    seeing=$!
    trap 'kill -INT "$engines" "$seeing"; wait "$engines" "$seeing"; exit 130' INT TERM
    part rest "$@" $folders
    rest=$?
}
echo "the tests of whole installations:"
wait "$engines"
first=$?
cat "$folder/engines"
echo "the tests of transactions, and of what is seen of installations:"
wait "$seeing"
second=$?
cat "$folder/seen"

status=0
for pair in "rest:$rest" "engines:$first" "seen:$second"; do
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
