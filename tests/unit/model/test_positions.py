"""YAML with positions: what is refused, where, and what scalars mean."""

from __future__ import annotations

import pytest

from bedstone.errors import Position
from bedstone.model.positions import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    ManifestError,
    format_location,
    parse_location,
    read_document,
)


def refused(text: str | bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        read_document(text, "m.yaml")
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "m.yaml:1:1: the file is empty"),
        ("# only a comment\n", "m.yaml:1:1: the file is empty"),
        ("a: 1\n\tb: 2\n", "m.yaml:2:1: got a tab, expected spaces"),
        ("a:\n \tb: 2\n", "m.yaml:2:2: got a tab, expected spaces"),
        (b"a: \xff\n", "m.yaml:1:4: got the byte 0xff, expected UTF-8"),
        ("é: 1\nb: \xff\n".encode() + b"\xc3\n", "m.yaml:3:1: got the byte 0xc3"),
        ("a: \x00\n", "m.yaml:1:4: got the character U+0000, expected text"),
        ("a: 1\nb: x\x07\n", "m.yaml:2:5: got the character U+0007"),
        ("a: b: c\n", "m.yaml:1:5: got ':' where no key can be"),
        ("a: 1\n---\nb: 2\n", "m.yaml:2:1: got a second document, expected one"),
        ("a: *b\n", "m.yaml:1:4: found undefined alias"),
        ("a: [1, 2\nb: 3\n", "m.yaml:2:2: not YAML"),
        ("a: {b: 1\n", "m.yaml:2:1: not YAML"),
        ("a: 'x\n", "m.yaml:2:1: not YAML"),
        ("a: @x\n", "m.yaml:1:4: not YAML"),
        ("%YAML 3.0\n---\na: 1\n", "m.yaml:1:1: not YAML"),
        ("[" * 5000, f"m.yaml:1:{MAX_DEPTH + 2}: nested more than {MAX_DEPTH} deep"),
        ("a: 1\n" * (MAX_BYTES // 5 + 1), "m.yaml:1:1: got more than 1048576 bytes"),
    ],
)
def test_what_cannot_be_read_is_one_problem_with_its_place(text: str | bytes, start: str) -> None:
    assert refused(text).startswith(start)


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert f"more than {MAX_VALUES} values" in refused("\n".join(lines))


def test_an_alias_within_itself_is_refused() -> None:
    assert "counting aliases" in refused("a: &a [*a]")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "m.yaml:3:1: duplicate key 'a', first given at m.yaml:1:1"),
        ("a: {b: 1, b: 2}\n", "m.yaml:1:11: duplicate key 'b', first given at m.yaml:1:5"),
        ("a:\nb: 1\n", "m.yaml:1:3: got no value"),
        ("a: ~\n", "m.yaml:1:4: got no value"),
        ("a: [null]\n", "m.yaml:1:5: got no value"),
        ("5: a\n", "m.yaml:1:1: got the key 5, expected a string; put it in quotes"),
        ("true: a\n", "m.yaml:1:1: got the key true, expected a string"),
        ("? [a]\n: b\n", "m.yaml:1:3: got a collection as a key"),
        ("x: &x {b: 1}\na: {<<: *x}\n", "m.yaml:2:5: got a merge key '<<'"),
        ("a: !!python/object:os.system x\n", "m.yaml:1:4: got 'x' as !!python/object:os.system"),
        ("a: !!set {x}\n", "m.yaml:1:4: got the tag"),
        ("a: !mine [x]\n", "m.yaml:1:4: got the tag '!mine'"),
        ("a: !!int x\n", "m.yaml:1:4: got 'x' as !!int"),
        ("a: !!binary aGk=\n", "m.yaml:1:4: got 'aGk=' as !!binary"),
        (f"a: {'9' * 5000}\n", "m.yaml:1:4: got '999"),
        ("a: 1e999\n", "m.yaml:1:4: got '1e999' as !!float"),
    ],
)
def test_what_leaves_the_rest_readable_is_collected(text: str, problem: str) -> None:
    document = read_document(text, "m.yaml")
    assert [str(p)[: len(problem)] for p in document.problems] == [problem]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("10:30", "10:30"),
        ("12", 12),
        ("-12", -12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("2.0", 2),
        ("1e3", 1000),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'5'", "5"),
        ("'null'", "null"),
        ('""', ""),
        ("!!str 5", "5"),
        ("/healthz", "/healthz"),
        ("5m", "5m"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    document = read_document(f"a: {text}\n", "m.yaml")
    assert document.problems == ()
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_a_byte_order_mark_and_windows_line_ends_do_not_shift_positions() -> None:
    for text in (b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "\ufeffa: 1\r\nb: 2\r\n"):
        document = read_document(text, "m.yaml")
        assert document.data == {"a": 1, "b": 2}
        assert document.position(("a",)) == Position("m.yaml", 1, 4)
        assert document.position(("b",)) == Position("m.yaml", 2, 4)


def test_a_mapping_is_where_its_key_is_and_a_scalar_where_it_is() -> None:
    document = read_document("a:\n  b:\n    - x\n    - {c: 1}\n", "m.yaml")
    assert document.position(("a",)) == Position("m.yaml", 1, 1)
    assert document.position(("a", "b")) == Position("m.yaml", 2, 3)
    assert document.position(("a", "b", 0)) == Position("m.yaml", 3, 7)
    assert document.position(("a", "b", 1)) == Position("m.yaml", 4, 7)
    assert document.position(("a", "b", 1, "c")) == Position("m.yaml", 4, 11)
    assert document.position(("a", "b", 7, "d")) == Position("m.yaml", 2, 3)
    assert document.position(("z",)) == Position("m.yaml", 1, 1)


def test_locations_have_one_spelling() -> None:
    location = ("workloads", "risk", "uses", 0)
    assert format_location(location) == "workloads.risk.uses[0]"
    assert parse_location("workloads.risk.uses[0]") == location
    assert format_location(()) == ""
    assert parse_location("") == ()
