"""What comes of a box is written below the target, whatever the box has made of its archive."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.cli.box_copying import copy_in, copy_out
from bedstone.errors import NotFoundError, UnavailableError
from bedstone.testing.boxes import archive


class Boxes:
    """What a box sends, and what it got."""

    def __init__(self, data: bytes = b"", folders: tuple[str, ...] = ("/srv",)) -> None:
        self.data = data
        self.folders = folders
        self.got: dict[str, tuple[str, tarfile.TarInfo]] = {}

    async def copy_out(self, box: str, path: str) -> AsyncIterator[bytes]:
        if path == "/none":
            raise NotFoundError(f"{box}: {path} is not there")
        for start in range(0, len(self.data), 100):
            yield self.data[start : start + 100]

    async def copy_in(self, box: str, folder: str, blocks: AsyncIterator[bytes]) -> None:
        if folder not in self.folders:
            raise NotFoundError(f"{box}: {folder} is not there")
        data = b"".join([block async for block in blocks])
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            self.got |= {
                os.path.normpath(f"{folder}/{each.name}"): (each.name, each) for each in tar
            }


def out(data: bytes, target: Path | str, source: str = "/x") -> list[str]:
    boxes: Any = Boxes(data)
    return asyncio.run(copy_out(boxes, "b", source, str(target)))


def into(source: Path | str, target: str, *, keep: bool = False) -> dict[str, tarfile.TarInfo]:
    boxes: Any = Boxes()
    asyncio.run(copy_in(boxes, "b", str(source), target, keep_owners=keep))
    return {place: member for place, (_, member) in boxes.got.items()}


def test_a_copy_is_in_the_target_or_is_the_target(tmp_path: Path) -> None:
    data = archive(("x", None), ("x/a", b"1"), ("x/l", "a"))
    out(data, tmp_path)
    out(data, tmp_path / "y")
    out(data, tmp_path / "z", "/x/.")
    (tmp_path / "there").mkdir()
    out(data, tmp_path / "there", "/x/.")
    for folder in ("x", "y", "z", "there"):
        assert (tmp_path / folder / "a").read_text() == "1"
        assert (tmp_path / folder / "l").readlink() == Path("a")
    out(archive(("x", b"2")), tmp_path / "y/a")
    assert (tmp_path / "y/a").read_text() == "2"
    for target in (tmp_path / "none/x", f"{tmp_path}/none/"):
        with pytest.raises(NotFoundError):
            out(data, target)
    with pytest.raises(NotFoundError):
        out(data, tmp_path, "/none")
    with pytest.raises(UnavailableError):
        out(b"nonsense" * 200, tmp_path)


def test_what_is_no_file_is_left_out_and_the_target_stays_as_it_is(tmp_path: Path) -> None:
    data = archive(("x", b""), type=tarfile.FIFOTYPE)
    assert out(data, tmp_path) == ["x"]
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)
    out(archive((".", None), ("./a", b"1"), ("./b", b"2"), mtime=1 << 40), tmp_path, "/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "members",
    [
        [("x", None), ("x/../../evil", b"1")],
        [(".", b"1")],
        [("x/..", b"1")],
        [("/evil", b"1")],
        [("x", None), ("x/l", "/"), ("x/l/evil", b"1")],
        [("x", None), ("x/l", ".."), ("x/m", "l/.."), ("x/m/evil", b"1")],
        [("x", None), ("x/l", "."), ("x/m", "l/../.."), ("x/m/evil", b"1")],
        [("x", None), ("x/d", None), ("x/d/l", "../../.."), ("x/d/l/evil", b"1")],
        [("x", None), ("x/l", "../../evil"), ("x/l", b"1")],
    ],
)
def test_nothing_is_written_elsewhere(members: Any, tmp_path: Path) -> None:
    target = tmp_path / "a/target"
    target.mkdir(parents=True)
    assert out(archive(*members), target)
    assert not list(tmp_path.glob("evil"))
    assert not list(tmp_path.glob("a/evil"))
    assert not Path("/evil").exists()
    for place in target.rglob("*"):
        assert place.resolve().is_relative_to(target)


def test_hard_links_and_attributes_come_along(tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        first = tarfile.TarInfo("x")
        first.type = tarfile.DIRTYPE
        tar.addfile(first)
        file = tarfile.TarInfo("x/a")
        file.pax_headers = {"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.k": "v"}
        tar.addfile(file)
        for name, source in (("x/b", "x/a"), ("x/evil", "../outside")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, source
            tar.addfile(link)
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "kept").mkdir()
    assert out(made.getvalue(), tmp_path / "kept") == ["x/evil"]
    (tmp_path / "t").mkdir()
    assert out(made.getvalue(), tmp_path / "t/y") == ["x/evil"]
    assert (tmp_path / "t/y/a").samefile(tmp_path / "t/y/b")
    if os.listxattr(tmp_path / "t/y/a"):
        assert os.listxattr(tmp_path / "t/y/a") == ["user.k"]


def test_what_goes_in_is_the_root_users(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("1")
    assert sorted(into(tmp_path / "d", "/srv")) == ["/srv/d", "/srv/d/a"]
    assert sorted(into(tmp_path / "d", "/srv/e")) == ["/srv/e", "/srv/e/a"]
    assert sorted(into(f"{tmp_path}/d/.", "/srv")) == ["/srv", "/srv/a"]
    assert sorted(into(f"{tmp_path}/d/.", "/srv/e/")) == ["/srv/e", "/srv/e/a"]
    found = into(tmp_path / "d/a", "/srv/b")["/srv/b"]
    assert (found.uid, found.gid, found.uname) == (0, 0, "")
    found = into(tmp_path / "d/a", "/srv/b", keep=True)["/srv/b"]
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    for source, target in ((tmp_path / "d", "/none/"), (tmp_path / "d", "/none/x")):
        with pytest.raises(NotFoundError):
            into(source, target)
    with pytest.raises(NotFoundError, match="nothing is at"):
        into(tmp_path / "none", "/srv")
