"""What a box without an image sees of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bedstone.errors import InvalidError
from bedstone.sandbox.box import Mount
from bedstone.sandbox.views import compose, find_program, installed, path_file, program_inside

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


def test_an_interpreter_brings_what_it_was_made_from(tmp_path: Path) -> None:
    """A virtual environment, its base by parts, and the folders that `.pth` files name."""
    base, environment, added = tmp_path / "base", tmp_path / "venv", tmp_path / "src"
    packages = environment / "lib/python3.11/site-packages"
    for folder in (base / "bin", base / "lib", base / "secrets", packages, added):
        folder.mkdir(parents=True)
    (base / "bin/python3.11").touch()
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(base / "bin/python3.11")
    (environment / "pyvenv.cfg").write_text(f"home = {base}/bin\nversion = 3.11\n")
    (packages / "own.pth").write_text(f"import os\n# {tmp_path}\n{added}\n/nowhere\n/\n")
    found = installed(environment / "bin/python")
    assert environment in found
    assert {base / "bin", base / "lib"} <= set(found)
    assert added in found
    assert not {tmp_path, base, base / "secrets", Path("/")} & set(found)
    assert list(path_file(packages / "gone.pth")) == []
    assert installed(Path("/usr/bin/python3")) == []


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
