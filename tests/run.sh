#!/bin/sh
# Runs all tests, as two halves side by side: those of a whole installation mostly wait, the others
# mostly compute. $1 is the interpreter, the rest goes to pytest. What the first half says is shown
# when it has ended.
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

# Of about the same length: transactions have no installation under them, but for a few.
transactions=$(ls tests/e2e/test_*.py | grep -E '/test_(automatic|barrier|chaos|message|saga|tcc|transaction|xa)')
others=$(ls tests/e2e/test_*.py tests/e2e/*/test_*.py | grep -vE '/test_(automatic|barrier|chaos|message|saga|tcc|transaction|xa)')
folders=$(ls -d tests/*/ | grep -vE '/(e2e|chaos|__pycache__)/')

# shellcheck disable=SC2086 # each is a list
half engines "$@" $others >"$folder/engines" 2>&1 &
engines=$!
trap 'kill -INT "$engines"; wait "$engines"; exit 130' INT TERM
# shellcheck disable=SC2086
half rest "$@" $folders $transactions
rest=$?
echo "the tests of whole installations:"
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
