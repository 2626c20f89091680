"""The error tree and its one mapping to the outside."""

from __future__ import annotations

import pytest

from bedstone import errors
from bedstone.errors import Error, InvalidError, Position, UnavailableError, from_code


def kinds() -> list[type[Error]]:
    """Every class of the tree."""
    found, waiting = [], [Error]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += [k for k in kind.__subclasses__() if k.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", kinds())
def test_every_code_has_a_status_everywhere(kind: type[Error]) -> None:
    for table in (errors.EXIT_STATUS, errors.HTTP_STATUS, errors.GRPC_STATUS):
        assert kind.code in table


def test_codes_are_distinct_and_tables_have_no_other() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    for table in (errors.EXIT_STATUS, errors.HTTP_STATUS, errors.GRPC_STATUS):
        assert set(table) == set(codes)


def test_exit_statuses_tell_failures_apart_from_success_and_from_signals() -> None:
    statuses = errors.EXIT_STATUS.values()
    assert len(set(statuses)) == len(statuses)
    assert all(1 < status < 126 for status in statuses)


@pytest.mark.parametrize("kind", kinds())
def test_an_error_survives_a_wire(kind: type[Error]) -> None:
    error = from_code(kind.code, "what happened", hint="do this")
    assert type(error) is kind
    assert (error.message, error.hint) == ("what happened", "do this")


def test_an_unknown_code_is_an_error_still() -> None:
    assert type(from_code("later-version", "what happened")) is Error


def test_a_position_comes_first() -> None:
    error = InvalidError("got x, expected y", position=Position("bedstone.yaml", 7, 5))
    assert str(error) == "bedstone.yaml:7:5: got x, expected y"
    assert str(InvalidError("got x, expected y")) == "got x, expected y"


def test_unavailable_says_when_to_try_again() -> None:
    error = UnavailableError("the server starts", retry_after=0.5, hint="wait")
    assert (error.retry_after, error.hint, error.code) == (0.5, "wait", "unavailable")
