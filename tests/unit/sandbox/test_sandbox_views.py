"""What a box without an image sees of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bedstone.errors import InvalidError
from bedstone.sandbox.box import Mount
from bedstone.sandbox.views import compose, find_program, program_inside

USER = (64000, 64000)


def bound(mounts: tuple[Mount, ...]) -> dict[str, str]:
    """Source by target, of what is not the system's."""
    return {
        mount.target: mount.source
        for mount in mounts
        if mount.kind == "bind" and not mount.target.startswith(("/usr", "/etc", "/lib", "/bin"))
    }


def test_only_what_is_named_is_shown(tmp_path: Path) -> None:
    """Each at its own path; parents are made in the root, whatever their modes here."""
    source = tmp_path / "closed" / "app"
    source.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "neighbour").mkdir()
    root = tmp_path / "root"
    mounts = compose(root, [source, source / "inner", tmp_path / "gone"], [], USER)
    assert bound(mounts) == {str(source): str(source)}
    assert all(mount.readonly for mount in mounts)
    place = root / str(source).lstrip("/")
    assert place.is_dir()
    assert (root / str(tmp_path).lstrip("/") / "closed").stat().st_mode & 0o777 == 0o755
    assert not (root / str(tmp_path).lstrip("/") / "neighbour").exists()
    assert "64000" in (root / "etc/passwd").read_text()
    assert not (root / "etc/shadow").exists()
    assert not {"home", "var", "opt", "srv"} & {path.name for path in root.iterdir()}


def test_what_is_hidden_is_empty_inside_and_refused_alone(tmp_path: Path) -> None:
    secret = tmp_path / "app" / ".bedstone"
    secret.mkdir(parents=True)
    mounts = compose(tmp_path / "root", [tmp_path / "app"], [secret], USER)
    assert Mount("tmpfs", str(secret), kind="tmpfs", size=4096) in mounts
    for shown in (secret, secret / "node"):
        shown.mkdir(exist_ok=True)
        with pytest.raises(InvalidError, match="no box sees"):
            compose(tmp_path / "root", [shown], [secret], USER)


def test_links_are_shown_where_they_are_and_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    mounts = compose(tmp_path / "root", [tmp_path / "link"], [], USER)
    real = str(tmp_path / "real")
    assert bound(mounts) == {real: real, str(tmp_path / "link"): real}


def test_what_the_system_has_is_there_already(tmp_path: Path) -> None:
    """Also by the names that are links on most machines, which no mount can be put over."""
    root = tmp_path / "root"
    assert compose(root, [Path("/bin"), Path("/lib/x")], [], USER) == compose(root, [], [], USER)


def test_what_is_hidden_twice_is_hidden_once(tmp_path: Path) -> None:
    """Boxes of a run whose state is hidden, too."""
    inner = tmp_path / "app/state/boxes"
    inner.mkdir(parents=True)
    mounts = compose(tmp_path / "root", [tmp_path / "app"], [inner, inner.parent], USER)
    assert [mount.target for mount in mounts if mount.kind == "tmpfs"] == [str(inner.parent)]


def test_a_program_is_one_of_the_box(tmp_path: Path) -> None:
    mounts = [Mount(str(tmp_path), str(tmp_path))]
    (tmp_path / "tool").touch(mode=0o755)
    assert find_program("sh", "/usr/bin:/bin", tmp_path, mounts) in ("/usr/bin/sh", "/bin/sh")
    assert find_program("./tool", "", tmp_path, mounts) == str(tmp_path / "tool")
    with pytest.raises(InvalidError, match="program not found: no-such"):
        find_program("no-such", "/usr/bin", tmp_path, mounts)
    (tmp_path / "x").mkdir()
    with pytest.raises(InvalidError, match="is not in its box"):
        find_program("../tool", "", tmp_path / "x", [Mount("/x", str(tmp_path / "x"))])


def test_a_program_of_an_image_is_found_in_the_image(tmp_path: Path) -> None:
    """By the image's PATH; a link is followed as the image means it, and never out of it."""
    for folder in ("bin", "opt/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "opt/bin/serve").touch(mode=0o755)
    (tmp_path / "bin/serve").symlink_to("/opt/bin/serve")
    (tmp_path / "bin/sh").symlink_to("../../../../../../../bin/sh")
    (tmp_path / "bin/data").touch(mode=0o644)
    assert program_inside(tmp_path, "serve", "relative:/bin:/opt/bin") == "/bin/serve"
    assert program_inside(tmp_path, "data", "/bin") == "data"
    assert program_inside(tmp_path, "sh", "/bin") == "sh", "it leads to itself here"
    assert program_inside(tmp_path, "/bin/x", "/bin") == "/bin/x"
    assert os.access("/bin/sh", os.X_OK), "which is there, outside"
