"""Users of a root are found in the root, and no link of it is followed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bedstone.boxes.roots import find_root, find_user
from bedstone.cli.run import parse_size, read_policy
from bedstone.errors import InvalidError, NotFoundError


def make(folder: Path) -> Path:
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:33:34:w:/srv:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nstaff:x:50:a,b\n")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0)),
        ("web", (33, 34)),
        ("33", (33, 34)),
        ("web:staff", (33, 50)),
        ("web:7", (33, 7)),
        ("1000", (1000, 0)),
        ("1000:1000", (1000, 1000)),
    ],
)
def test_users(text: str, expected: tuple[int, int], tmp_path: Path) -> None:
    assert find_user(make(tmp_path), text) == expected


@pytest.mark.parametrize("text", ["nobody", "web:nogroup", "-1", "65536", "99999999999", "a b"])
def test_there_is_no_such_user(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        find_user(make(tmp_path), text)


def test_links_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make(other)
    for name, target in (("a", "../other/etc"), ("b", "/etc")):
        root = tmp_path / name
        root.mkdir()
        (root / "etc").symlink_to(target)
        with pytest.raises(InvalidError):
            find_user(root, "web")
    root = tmp_path / "c"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").symlink_to(other / "etc/passwd")
    with pytest.raises(InvalidError):
        find_user(root, "web")


def test_a_directory_is_a_root(tmp_path: Path) -> None:
    assert asyncio.run(find_root(str(tmp_path), "b")).path == tmp_path.resolve()
    with pytest.raises(NotFoundError):
        asyncio.run(find_root(str(tmp_path / "none"), "b"))


def test_sizes() -> None:
    assert [parse_size(text) for text in ("7", "2k", "512m", "1G", "1gb")] == [
        7,
        2048,
        512 << 20,
        1 << 30,
        1 << 30,
    ]
    for text in ("", "m", "1.5g", "-1", "1x"):
        with pytest.raises(InvalidError):
            parse_size(text)


def test_policies_are_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"version": 1, "programs": ["/bin/sh"]}')
    assert read_policy(file).programs == ("/bin/sh",)
    for text in ("", "[]", "{}", '{"version": 1, "program": []}'):
        file.write_text(text)
        with pytest.raises(InvalidError, match="policy"):
            read_policy(file)
