"""What copies keep of files, and what not. That they stay in the box others test."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from bedstone.sandbox.oci.copying import Refusal, pack, unpack


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are restored by root alone")
def test_copies_keep_what_is_of_users_and_no_more(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    target.mkdir()
    file = source / "folder/file"
    file.write_text("x")
    file.chmod(0o4755)
    os.chown(file, 7, 8)
    value = b"\0\xff=\n"
    try:
        os.setxattr(file, "user.key", value)
        os.setxattr(source / "folder", "user.folder", b"f")
    except OSError:
        pytest.skip("this file system has no attributes")
    os.setxattr(file, "trusted.key", value)
    stream = io.BytesIO()
    pack(stream, str(source / "folder"))
    stream.seek(0)
    unpack(stream, str(target))
    copied = target / "folder/file"
    found = copied.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 7, 8)
    assert os.getxattr(copied, "user.key") == value
    assert [name for name in os.listxattr(copied) if "key" in name] == ["user.key"]
    assert os.getxattr(target / "folder", "user.folder") == b"f"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refusal):
        unpack(io.BytesIO(), str(tmp_path / "none"))
    with pytest.raises(Refusal):
        pack(io.BytesIO(), str(tmp_path / "none"))
