"""What an interpreter brings with it into a box, whatever its packages have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bedstone.sandbox.installed import Needed, installed
from bedstone.sandbox.views import compose


class Scene:
    """An installed Python, an app with a virtual environment of it, and what is nobody's business.

    Args:
        folder: of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.base, self.app, self.secret = folder / "base", folder / "app", folder / "secret"
        self.venv = self.app / ".venv"
        self.packages = self.venv / "lib/python3.11/site-packages"
        for each in (
            *(self.base / name for name in ("bin", "lib/python3.11", "documents")),
            *(self.packages, self.venv / "bin", self.secret / "bin", self.secret / "lib"),
        ):
            each.mkdir(parents=True)
        (self.base / "bin/python3.11").touch(mode=0o755)
        (self.base / "lib/python3.11/os.py").touch()
        self.python = self.venv / "bin/python"
        self.python.symlink_to(self.base / "bin/python3.11")
        self.configure(self.base / "bin")

    def configure(self, home: Path) -> None:
        (self.venv / "pyvenv.cfg").write_text(f"home = {home}\nversion = 3.11\n")

    def needed(self) -> Needed:
        return installed(self.python, (self.app,))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_an_interpreter_brings_what_it_was_made_from(scene: Scene) -> None:
    """A virtual environment, and its base by parts."""
    found = scene.needed()
    assert {scene.venv, scene.base / "bin", scene.base / "lib"} <= set(found.shown)
    assert not {scene.base, scene.base / "documents", Path("/")} & set(found.shown)
    assert found.notes == ()
    (scene.packages / "own.pth").write_text(f"{scene.packages}\n")
    assert installed(scene.app / "web/../.venv/bin/python", ()) == found, "`python: ../.venv/…`"
    assert installed(Path("/usr/bin/python3"), ()).shown == ()


def test_a_path_file_adds_what_the_app_may_see_anyway(scene: Scene) -> None:
    """An editable install goes on working; what is elsewhere is left out, and named."""
    source, hidden, link = scene.app / "src", scene.app / ".keys", scene.app / "link"
    source.mkdir()
    hidden.mkdir()
    link.symlink_to(scene.secret)
    (scene.packages / "own.pth").write_text(
        f"import os\n# {scene.base}\n{source}\n{hidden}\n{link}\n{scene.secret}\n"
        "/etc\n/nowhere\n/\n../../../../src\n"
    )
    found = scene.needed()
    assert [path for path in found.shown if path.is_relative_to(scene.app)] == [scene.venv, source]
    assert not {path for path in found.shown if "secret" in str(path) or path == Path("/etc")}
    said = "\n".join(found.notes)
    assert f"shown: {source}, which own.pth of its packages names" in said
    for path in (hidden, link, scene.secret, Path("/etc")):
        assert f"left out: {path}, which own.pth of its packages names; put it below `path`" in said
    assert len(found.notes) == 5


@pytest.mark.parametrize("place", ["/", "/etc", "/run", "/root", "/var/lib", "/home"])
def test_no_path_file_adds_what_is_the_machines(scene: Scene, place: str) -> None:
    """Wherever the app says that it is."""
    (scene.packages / "own.pth").write_text("/etc\n/root\n/run\n/var\n/home\n")
    found = installed(scene.python, (Path(place),))
    assert not {Path(path) for path in ("/etc", "/root", "/run", "/var", "/home")} & {*found.shown}


def test_a_path_file_that_is_none_is_not_waited_for(scene: Scene) -> None:
    os.mkfifo(scene.packages / "pipe.pth")
    (scene.packages / "loop.pth").symlink_to("loop.pth")
    assert scene.needed().notes == ()


def test_a_base_is_where_a_python_is(scene: Scene) -> None:
    """Neither by the environment's settings nor by a link is anything else one."""
    scene.configure(scene.secret / "bin")
    scene.python.unlink()
    (scene.secret / "bin/python").symlink_to(scene.base / "bin/python3.11")
    scene.python.symlink_to(scene.secret / "bin/python")
    found = scene.needed()
    assert not [path for path in found.shown if path.is_relative_to(scene.secret)]
    assert scene.base / "lib" in found.shown, "it is where the interpreter is"
    assert found.notes == (
        f"left out: {scene.secret}, which {scene.venv}/pyvenv.cfg names and has no Python",
    )


def test_links_to_an_interpreter_are_there_without_what_lies_beside_them(
    scene: Scene, tmp_path: Path
) -> None:
    """Such as those that installers leave in somebody's own `bin`."""
    link = tmp_path / "me/bin/python3.11"
    link.parent.mkdir(parents=True)
    (link.parent / "key").touch()
    link.symlink_to(scene.base / "bin/python3.11")
    scene.python.unlink()
    scene.python.symlink_to(link)
    found = scene.needed()
    assert found.links == (link,)
    root = tmp_path / "root"
    mounts = compose(root, found.shown, [], (1, 1), (), found.links)
    assert str(scene.base / "bin") in {mount.target for mount in mounts}
    beside = root / str(link.parent).lstrip("/")
    assert [path.name for path in beside.iterdir()] == ["python3.11"]
    assert (beside / "python3.11").readlink() == scene.base / "bin/python3.11"


def test_the_systems_python_brings_nothing(scene: Scene) -> None:
    """Also if it was found as /bin/python3: the root is no prefix."""
    scene.configure(Path("/bin"))
    scene.python.unlink()
    scene.python.symlink_to("/bin/python3")
    assert scene.needed() == Needed((scene.venv,))
