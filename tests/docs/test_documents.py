"""What the documents show is so: links, manifests, commands, programs, generated pages."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click

from bedstone.cli.main import cli
from bedstone.model.manifest import parse_manifest

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"!?\[(?:[^\]]|\n)*?\]\(([^)\s]+)\)")
_CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What a link may point to within a document (as its host makes them)."""
    found = set()
    for heading in _HEADING.findall(_CODE.sub("", document.read_text())):
        kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(kept.replace(" ", "-"))
    return found


def test_internal_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(_CODE.sub("", document.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: got {sorted(anchors(target))}"


def test_no_document_names_a_place_of_one_machine(document: Path) -> None:
    text = document.read_text()
    here = Path(__file__).parents[2]
    for path in (f"{here}/", f"{Path.home()}/", "/home/", "simple/"):
        assert path not in text


def test_blocks_name_their_language(document: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", document.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2]), "each block names its language, so that it is checked"


def test_manifests_are_valid(manifest: Any) -> None:
    found = parse_manifest(manifest.text, manifest.name)
    assert found.spec.workloads


def test_programs_run(python: Any, tmp_path: Path) -> None:
    compile(python.text, python.name, "exec")
    if python.what == "python":
        file = tmp_path / "snippet.py"
        # under another name than __main__, so that a server does not start to serve
        file.write_text(f"__name__ = 'snippet'\n{python.text}")
        done = subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr


def parts(command: str) -> list[list[str]]:
    """The simple commands of a line of shell, each without redirections and variables before it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&<>()")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if skip:
            skip = False
        elif set(word) <= set("<>"):
            skip = True
        elif set(word) <= set("|;&()"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def check(words: list[str]) -> None:
    """Whether a command and its options exist and their values have the right type."""
    command: click.Command = cli
    arguments = words[1:]
    while isinstance(command, click.Group) and arguments:
        if arguments[0].startswith("-"):
            break
        child = command.get_command(click.Context(command), arguments[0])
        assert child is not None, f"there is no command {arguments[0]}"
        command, arguments = child, arguments[1:]
    if "--help" not in arguments:
        command.make_context(words[0], list(arguments)).close()


def test_commands_exist(console: Any) -> None:
    seen = 0
    for command, _ in console.commands():
        # what a shell puts in stands for itself here
        for words in parts(re.sub(r"\$\(.*?\)", "SOMETHING", command.partition(" #")[0])):
            seen += 1
            if words[0] == "bedstone":
                check(words)
            elif words[0] == "make":
                targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert {word for word in words[1:] if "=" not in word} <= set(targets)
    assert seen, "a console shows at least one command"


def test_examples_in_help_exist(helped: Any) -> None:
    examples = helped.text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    for line in examples:
        command = re.split(r"\s{2,}", line.strip())[0]
        for words in parts(command):
            check(words)


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text()
    for name in cli.list_commands(click.Context(cli)):
        assert f"### `bedstone {name}`" in page


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    picture = ROOT / "docs/pictures/up.svg"
    text = picture.read_text()
    ET.fromstring(text)
    assert set(re.findall(r"(?:href|src)=\"([^#\"]+)|url\(([^#)]+)|@import", text)) == set()
    assert "bank" in text
    assert "403" in text
    assert picture.stat().st_size < 64_000


def test_every_page_can_be_found_from_the_index() -> None:
    """From docs/README.md, by links alone."""
    found, ahead = set[Path](), [ROOT / "docs/README.md"]
    while ahead:
        page = ahead.pop()
        if page in found or page.suffix != ".md" or not page.exists():
            continue
        found.add(page)
        links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links]
    assert set(ROOT.glob("docs/**/*.md")) <= found
