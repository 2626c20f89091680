"""Which files a program imports, told from text alone."""

from __future__ import annotations

import pytest

from bedstone.model.imports import Entry, Import, closure, entry_of, imports_of
from bedstone.model.spec import WorkloadSpec


def reach(entry: Entry, files: dict[str, str]) -> set[str] | None:
    found = closure(entry, files.keys(), lambda path: imports_of(files[path].encode()))
    return None if found is None else set(found)


@pytest.mark.parametrize("source", [b"def (", b"\x00", b"(" * 3000, b"\xff\xfe"])
def test_what_is_no_python_has_no_known_imports(source: bytes) -> None:
    assert imports_of(source) is None


def test_every_form_of_import_is_found_wherever_it_stands() -> None:
    source = b"""
import a, b.c as d
from e import f, g
from . import h
from ..i import j
from k import *
def later():
    import l
    importlib.import_module("m.n")
    __import__("o")
    importlib.import_module(computed)
"""
    assert set(imports_of(source) or ()) == {
        Import("a"),
        Import("b.c"),
        Import("e", "f"),
        Import("e", "g"),
        Import("", "h", 1),
        Import("i", "j", 2),
        Import("k", "*"),
        Import("l"),
        Import("m.n"),
        Import("o"),
    }


@pytest.mark.parametrize(
    ("command", "entry"),
    [
        (["python", "risk.py"], Entry((), "risk.py", (".", "."))),
        (["python3.12", "-u", "-X", "dev", "./sub/risk.py", "--port"], None),
        ([".venv/bin/python", "-m", "pkg.mod", "x.py"], Entry(("pkg.mod",), None, (".",))),
        (["python", "-c", "import x"], None),
        (["python", "-"], None),
        (["python"], None),
        (["python", "-m"], None),
        (["python", "/elsewhere/x.py"], None),
        (["python", "script"], None),
        (["node", "x.js"], None),
        (["sh", "-c", "python risk.py"], None),
        (["pythonista", "x.py"], None),
    ],
)
def test_a_command_starts_where_python_would_start_it(
    command: list[str], entry: Entry | None
) -> None:
    found = entry_of(WorkloadSpec(command=tuple(command)))
    if "./sub/risk.py" in command:
        assert found == Entry((), "sub/risk.py", ("sub", "."))
    else:
        assert found == entry


def test_an_application_starts_in_its_module_and_searches_the_python_path() -> None:
    workload = WorkloadSpec(run="a.b:app", env={"PYTHONPATH": "src:${env.X}:/abs:lib"})
    assert entry_of(workload) == Entry(("a.b",), None, (".", "src", "lib"))


def test_imports_are_followed_through_packages_and_past_cycles() -> None:
    files = {
        "app.py": "import pkg.one\nimport os, unknown.thing\n",
        "pkg/__init__.py": "from . import two",
        "pkg/one.py": "from .sub import deep\nfrom .. import up",
        "pkg/two.py": "import app",
        "pkg/sub/__init__.py": "",
        "pkg/sub/deep.py": "from ...app import x\nfrom ..three import y",
        "pkg/three.py": "",
        "pkg/unused.py": "",
        "other.py": "",
    }
    assert reach(Entry(("app",)), files) == files.keys() - {"pkg/unused.py", "other.py"}


def test_a_namespace_package_needs_no_init() -> None:
    files = {"app.py": "from ns.mod import x", "ns/mod.py": "", "ns/other.py": ""}
    assert reach(Entry(("app",)), files) == {"app.py", "ns/mod.py"}


def test_a_package_that_is_run_starts_in_its_main() -> None:
    files = {"pkg/__init__.py": "", "pkg/__main__.py": "from pkg import x", "pkg/x.py": ""}
    assert reach(Entry(("pkg",)), files) == set(files)


def test_a_script_finds_modules_beside_itself_first() -> None:
    files = {"sub/risk.py": "import near, far", "sub/near.py": "", "far.py": "", "near.py": ""}
    found = reach(Entry((), "sub/risk.py", ("sub", ".")), files)
    assert found is not None
    assert {"sub/risk.py", "sub/near.py", "far.py"} <= found


def test_a_program_that_starts_elsewhere_cannot_be_told() -> None:
    assert reach(Entry(("kinto",)), {"x.py": ""}) is None
    assert reach(Entry((), "missing.py", (".",)), {"x.py": ""}) is None


def test_a_file_that_is_no_python_makes_the_whole_unknown() -> None:
    assert reach(Entry(("app",)), {"app.py": "import b", "b.py": "def ("}) is None
