"""What a box leaves in its root is of no use to the other users of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bedstone.boxes import Sandbox
from bedstone.errors import UnavailableError
from bedstone.sandbox.boxes import KIND
from bedstone.testing.box_programs import make_root, supported


@pytest.mark.parametrize("isolation", ["container", "gvisor"])
def test_no_user_gets_rights_from_a_box(isolation: str) -> None:
    why = supported()
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="bedstone-users-"))
    folder.chmod(0o711)
    home = folder / "boxes"

    async def work() -> None:
        async with Sandbox.create(
            str(folder / "root"), isolation=isolation, home=home, name="users-box"
        ) as box:
            made = "cp /bin/busybox /evil; chmod 6755 /evil; mknod /disk b 8 0; ls /"
            assert b"evil" in (await box.exec("sh", "-c", made)).stdout
            seen = home / "users-box/mnt/root"
            assert (seen / "evil").is_file()
            for place in ("root", "lower", "scratch"):
                flags = os.statvfs(home / "users-box/mnt" / place).f_flag
                assert flags & os.ST_NOSUID, place
                assert flags & 4, f"{place}: ST_NODEV"
            with pytest.raises(PermissionError):
                await asyncio.create_subprocess_exec(seen / "evil", "id", user=65534, group=65534)

    try:
        make_root(folder)
        try:
            asyncio.run(KIND.load(isolation)(home).open())
        except UnavailableError as error:
            pytest.skip(f"{error}; {error.hint}")
        asyncio.run(work())
    finally:
        shutil.rmtree(folder)
