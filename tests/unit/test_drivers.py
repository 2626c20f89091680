"""The plug-in loader, against drivers made here and real entry points on the search path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

from bedstone.drivers import Kind
from bedstone.errors import InvalidError

HERE = f"{__name__}:Good"


class Good:
    """A driver: `open` validates at once."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def open(cls, url: str) -> Self:
        if url.endswith("bad"):
            raise InvalidError("got a bad URL, expected a good one")
        return cls(url)


def install(folder: Path, package: str, kind: str, name: str, target: str) -> None:
    """Put an installed distribution with one entry point into a folder."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bedstone.{kind}]\n{name} = {target}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(InvalidError) as caught:
        Kind[Good]("colour", {"red": HERE, "blue": HERE}).open("green://x")
    assert "'green', expected one of blue, red" in caught.value.message
    assert caught.value.hint


def test_a_url_without_scheme_is_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        Kind[Good]("colour", {"red": HERE}).open("red")
    assert "expected a URL such as red://" in caught.value.message


@pytest.mark.parametrize("target", ["no.such.module:Driver", "bedstone.errors:NoSuchThing"])
def test_a_driver_that_cannot_be_imported_is_invalid_not_a_traceback(target: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Kind[Good]("colour", {"red": target}).load("red")
    assert target in caught.value.message
    assert caught.value.__cause__ is not None


def test_the_driver_refuses_its_url_itself() -> None:
    with pytest.raises(InvalidError, match="got a bad URL"):
        Kind[Good]("colour", {"red": HERE}).open("red://bad")


def test_a_scheme_opens_its_driver_with_the_whole_url() -> None:
    assert Kind[Good]("colour", {"red": HERE}).open("red://host/path").url == "red://host/path"


def test_an_installed_package_adds_a_driver(site: Path) -> None:
    install(site, "green_driver", "colour", "green", "green_module:Green")
    (site / "green_module.py").write_text("class Green:\n    pass\n")
    kind = Kind[Good]("colour", {"red": HERE})
    assert kind.names() == ["green", "red"]
    assert kind.load("green").__name__ == "Green"
    sys.modules.pop("green_module")


def test_a_package_may_not_take_the_name_of_a_built_in(site: Path) -> None:
    install(site, "red_driver", "colour", "red", "elsewhere:Red")
    with pytest.raises(InvalidError, match="two colour drivers are named 'red'"):
        Kind[Good]("colour", {"red": HERE}).names()


def test_two_packages_may_not_share_a_name(site: Path) -> None:
    install(site, "first_driver", "colour", "green", "first:Green")
    install(site, "second_driver", "colour", "green", "second:Green")
    with pytest.raises(InvalidError, match=r"first:Green and second:Green|second.* and first"):
        Kind[Good]("colour", {"red": HERE}).load("green")


def test_declaring_a_kind_imports_no_driver() -> None:
    script = (
        "import sys; from bedstone.drivers import Kind;"
        "k = Kind('colour', {'red': 'wsgiref.simple_server:WSGIServer'}); k.names();"
        "sys.exit('wsgiref.simple_server' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
