"""The built front end: its types are the API's, it is in the wheel, and it asks nobody outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import bedstone.console

ROOT = Path(__file__).parents[3]
STATIC = Path(bedstone.console.__file__).parent / "static"


def test_the_types_of_the_front_end_are_those_of_the_api() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "console/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_loads_its_own_files_and_holds_neither_script_nor_style() -> None:
    page = (STATIC / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (STATIC / name.removeprefix("/")).is_file(), name
    assert not re.search(r"<script[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=", page)


def test_no_file_names_another_host_to_load_from() -> None:
    for file in STATIC.glob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", file.read_text()), file
    for file in STATIC.glob("*.js"):
        hosts = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text()))
        assert {host for host in hosts if "www.w3.org" not in host} == set(), file


def test_nothing_is_made_from_text_at_run_time() -> None:
    """Trusted Types would refuse it; what an application names shall never be read as markup."""
    for file in STATIC.glob("*.js"):
        assert not re.search(r"\beval\(|new Function\(|document\.write", file.read_text()), file
    for file in (ROOT / "console/src").rglob("*.ts*"):
        text = file.read_text()
        assert not re.search("(?i)innerHTML|outerHTML|insertAdjacentHTML", text), file


def test_the_licences_of_what_is_bundled_come_along() -> None:
    text = (STATIC / "LICENSES.txt").read_text()
    for name in ("preact", "@preact/signals", "uplot"):
        assert f"{name} " in text
    assert "Permission is hereby granted" in text
