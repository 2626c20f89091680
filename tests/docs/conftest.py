"""The documents as data: their code blocks, each with what a comment before it asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)$")
_ASKED = re.compile(r"^ *<!-- (?P<what>[a-z]+)(?:: (?P<how>[^>]+?))? -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: `what` and `how` are from the comment `<!-- what: how -->` before it."""

    document: Path
    line: int
    language: str
    text: str
    what: str = ""
    how: str = ""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Of a console: each command, continued lines joined, with the output shown below it."""
        command, shown = "", list[str]()
        joined = re.sub(r"\\\n\s*", " ", self.text)
        joined = re.sub(r"('[^'\n]*)\n\s+([^'\n]*')", r"\1 \2", joined)
        for line in joined.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line[2:], []
            elif command:
                shown.append(line)
        if command:
            yield command, shown


def documents() -> list[Path]:
    """Everything that people read."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]
    return sorted(found)


def blocks_of(document: Path) -> list[Block]:
    """A document's blocks, in order."""
    found: list[Block] = []
    asked: re.Match[str] | None = None
    opened: re.Match[str] | None = None
    begin, lines = 0, list[str]()
    for number, line in enumerate(document.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, begin, lines = fence, number, []
        elif opened is not None and fence and not fence["language"]:
            text = "".join(f"{entry.removeprefix(opened['indent'])}\n" for entry in lines)
            what, how = (asked["what"], asked["how"] or "") if asked else ("", "")
            found.append(Block(document, begin, opened["language"], text, what, how))
            opened, asked = None, None
        elif opened is not None:
            lines.append(line)
        elif line.strip():
            asked = _ASKED.match(line)
    assert opened is None, f"{document}:{begin}: the block does not end"
    return found


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], list[Block]]:
    """Gives the blocks of a document, by its path in the repository."""
    return lambda path: blocks_of(ROOT / path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each document or block that a test asks for by a parameter's name."""
    every = [block for document in documents() for block in blocks_of(document)]
    choices: dict[str, list[Block]] = {
        "manifest": [b for b in every if b.language == "yaml"],
        "python": [b for b in every if b.language == "python"],
        "console": [b for b in every if b.language == "console"],
        "helped": [
            b for b in every if b.language == "text" and b.text.startswith("Usage: bedstone")
        ],
    }
    for parameter, found in choices.items():
        if parameter in metafunc.fixturenames:
            metafunc.parametrize(parameter, found, ids=[block.name for block in found])
    if "document" in metafunc.fixturenames:
        names = [str(path.relative_to(ROOT)) for path in documents()]
        metafunc.parametrize("document", documents(), ids=names)
