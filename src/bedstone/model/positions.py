"""YAML read with positions: each value knows the line and column where a person wrote it.

Owns: decoding, composing (PyYAML), the plain data, and where each part of it stands.

Rules:
- The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema):
  `no`, `on` and `2024-01-01` are strings. A tag of any other type is refused.
- Keys are strings, each once in a mapping. Null is refused: a key without a value is a mistake.
- Text, depth and the number of values (aliases expanded) are bounded before anything is built.
- All mistakes but those of syntax are collected, not raised one by one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from bedstone.errors import InvalidError, Position

Location = tuple[str | int, ...]
"""A way into the data: keys and indexes from the top."""

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 20_000

_TAG: Final = "tag:yaml.org,2002:"
_MAX_DIGITS: Final = 30


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a manifest.

    Attributes:
        position: where it is.
        message: what was got and what was expected.
        hint: what to do about it.
        location: the part of the manifest it is in.
    """

    position: Position
    message: str
    hint: str | None = None
    location: Location = ()

    def __str__(self) -> str:
        text = f"{self.position}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


class ManifestError(InvalidError):
    """A manifest has mistakes: all of them, in the order of the text.

    Args:
        problems: at least one.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(
            "\n".join(str(problem) for problem in problems),
            hint="correct the manifest; `bedstone schema` prints all that it may say",
        )
        self.problems = problems


@dataclass(frozen=True)
class Document:
    """The plain data of a YAML text, and where each part of it stands."""

    file: str
    data: Any
    problems: tuple[Problem, ...] = ()
    keys: Mapping[Location, Position] = field(default_factory=dict, repr=False)
    values: Mapping[Location, Position] = field(default_factory=dict, repr=False)
    scalars: Mapping[Location, str] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)

    def position(self, location: Location) -> Position:
        """Where a value is: a scalar or an item itself, a mapping or a list by its key.

        A part that the text does not spell out has the position of what would contain it.
        """
        while location:
            if location in self.scalars:
                return self.values[location]
            if location in self.keys:
                return self.keys[location]
            if location in self.values:
                return self.values[location]
            location = location[:-1]
        return self.values.get((), Position(self.file, 1, 1))

    def position_within(self, location: Location, index: int) -> Position:
        """Where a character of a string is, or the string where that cannot be told.

        It can be told of strings of one line, and of those in a block that keeps its lines (`|`).
        """
        start = self.position(location)
        if location not in self.scalars:
            return start
        before = self.scalars[location][:index]
        number = before.count("\n")
        part = self.scalars[location].split("\n")[number]
        written = self.text.splitlines()
        for line in (start.line + number, start.line + number + 1):
            least = start.column - 1 if line == start.line else 0
            if line <= len(written) and (found := written[line - 1].find(part, least)) >= 0:
                column = found + index - (before.rfind("\n") + 1)
                return Position(self.file, line, column + 1)
        return start

    def key_position(self, location: Location) -> Position:
        """Where the key of a value is, or the value if it has none."""
        return self.keys.get(location) or self.position(location)


def format_location(location: Location) -> str:
    """`("workloads", "risk", "uses", 0)` as `workloads.risk.uses[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse_location(text: str) -> Location:
    """Inverse of `format_location`, for keys without a dot or a bracket."""
    return tuple(
        int(index) if index else key for index, key in re.findall(r"\[(\d+)\]|([^.\[\]]+)", text)
    )


def read_document(content: str | bytes, file: str) -> Document:
    """Read one YAML document.

    Raises:
        ManifestError: it is not one YAML document, or exceeds a bound. Mistakes that leave the rest
            readable are in the result's `problems` instead.
    """
    text = _decode(content, file)
    try:
        node = _Loader(text).get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        position = Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise _fatal(
            position, f"got the character U+{_ordinal(error):04X}, expected text"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file, 1, 1)
        raise _fatal(position, *_syntax(text, error, mark)) from error
    if node is None:
        raise _fatal(
            Position(file, 1, 1),
            "the file is empty, expected a manifest",
            "`bedstone init` writes one to start from",
        )
    return replace(_Builder(file).build(node), text=text)


def _decode(content: str | bytes, file: str) -> str:
    size = len(content) if isinstance(content, bytes) else len(content.encode(errors="replace"))
    if size > MAX_BYTES:
        raise _fatal(
            Position(file, 1, 1),
            f"got more than {MAX_BYTES} bytes, expected a manifest that a person wrote",
        )
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        position = Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise _fatal(
            position,
            f"got the byte 0x{content[error.start]:02x}, expected UTF-8",
            "save the file as UTF-8",
        ) from error


def _fatal(position: Position, message: str, hint: str | None = None) -> ManifestError:
    return ManifestError((Problem(position, message, hint),))


def _ordinal(error: ReaderError) -> int:
    character: Any = error.character
    return ord(character) if isinstance(character, str) else int(character)


def _syntax(
    text: str, error: yaml.MarkedYAMLError, mark: yaml.Mark | None
) -> tuple[str, str | None]:
    """What is wrong in the words of someone who does not know YAML's grammar."""
    problem = error.problem or str(error)
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "'\\t'" in problem or line[: mark.column + 1 if mark else 0].lstrip(" ").startswith("\t"):
        return "got a tab, expected spaces", "indent with spaces"
    match problem:
        case "mapping values are not allowed here":
            return "got ':' where no key can be", "quote a value that contains ': ', or indent it"
        case "but found another document":
            return "got a second document, expected one", "remove the line '---'"
        case _ if problem.startswith(("nested", "found undefined alias")):
            return problem, None
        case _:
            where = f"{error.context}, " if error.context else ""
            return f"not YAML: {where}{problem}", None


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Composes nodes with marks; constructs nothing."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def _mark(self) -> Any:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose as PyYAML does, but refuse depth before it exhausts the stack."""
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested more than {MAX_DEPTH} deep", self._mark()
            )
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._depth -= 1


for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


class _Builder:
    """Turns nodes into plain data, with positions and problems on the side."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._problems: list[Problem] = []
        self._keys: dict[Location, Position] = {}
        self._values: dict[Location, Position] = {}
        self._scalars: dict[Location, str] = {}

    def build(self, node: yaml.Node) -> Document:
        data = self._value(node, ())
        return Document(
            self._file,
            data,
            tuple(self._problems),
            self._keys,
            self._values,
            self._scalars,
        )

    def _at(self, node: yaml.Node) -> Position:
        return Position(self._file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _problem(
        self, node: yaml.Node, location: Location, message: str, hint: str | None = None
    ) -> None:
        self._problems.append(Problem(self._at(node), message, hint, location))

    def _value(self, node: yaml.Node, location: Location) -> Any:
        if len(self._values) >= MAX_VALUES or len(location) > MAX_DEPTH:
            raise _fatal(
                self._at(node),
                f"got more than {MAX_VALUES} values or {MAX_DEPTH} levels, counting aliases",
                "write less with aliases ('*')",
            )
        self._values[location] = self._at(node)
        match node:
            case yaml.MappingNode(tag=tag) if tag == _TAG + "map":
                return self._mapping(node, location)
            case yaml.SequenceNode(tag=tag) if tag == _TAG + "seq":
                return [
                    self._value(item, (*location, index)) for index, item in enumerate(node.value)
                ]
            case yaml.ScalarNode():
                self._scalars[location] = node.value
                return self._scalar(node, location)
            case _:
                self._problem(node, location, f"got the tag {node.tag!r}, expected none")
                return None

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, location)
            if key is None:
                continue
            here = (*location, key)
            if key in result:
                first = self._keys[here]
                self._problem(
                    key_node,
                    (),  # of the second value, which nothing else looks at
                    f"duplicate key {key!r}, first given at {first}",
                    "keep one of the two",
                )
                continue
            self._keys[here] = self._at(key_node)
            result[key] = self._value(value_node, here)
        return result

    def _key(self, node: yaml.Node, location: Location) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, location, "got a collection as a key, expected a string")
            return None
        if node.value == "<<" and node.style is None:
            self._problem(node, location, "got a merge key '<<', expected a key", "repeat the keys")
            return None
        if node.tag != _TAG + "str":
            self._problem(
                node, location, f"got the key {node.value}, expected a string", "put it in quotes"
            )
            return None
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind == "null":
            self._problem(node, location, "got no value", "give the key a value, or remove it")
            return None
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind in {"int", "float"}:
                return _number(kind, text)
        except (KeyError, ValueError):
            pass
        tag = node.tag.replace(_TAG, "!!")
        self._problem(node, location, f"got {text!r} as {tag}, expected a plain value")
        return None


def _number(kind: str, text: str) -> int | float:
    """The number; JSON has one kind of them: 2.0 is the integer 2 to its schema too.

    Raises:
        ValueError: it is not a number, or too large to be one here.
    """
    if len(text) > _MAX_DIGITS:
        raise ValueError("too long")
    if kind == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2])
        return int(text[2:], base) if base else int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("too large")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
