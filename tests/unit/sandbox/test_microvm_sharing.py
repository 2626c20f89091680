"""What serves a guest's folders has no more rights than it takes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from bedstone.sandbox import mounts
from bedstone.sandbox.folders import IDS
from bedstone.sandbox.microvm import sharing

OWNER = 2_199_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="folders are mounted as root")
def test_it_gains_nothing_and_lends_nothing() -> None:
    """Neither it nor what it starts gets privileges; in the view no set-user-id file is made."""
    with tempfile.TemporaryDirectory(prefix="bedstone-sharing-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        shared, view = folder / "shared", folder / "view"
        shared.mkdir()
        view.mkdir()
        try:
            with mounts.viewed(shared, owner=OWNER, size=IDS, readonly=False):
                pass
        except OSError as error:
            pytest.skip(f"no idmapped mounts here: {error}")
        program = folder / "program"
        program.write_text(
            "#!/bin/sh\ngrep -E '^(NoNewPrivs|Seccomp|Uid):' /proc/self/status\n"
            "touch /mnt/0/file && chmod 755 /mnt/0/file && echo made\n"
            "chmod 4755 /mnt/0/file && echo lent\n"
        )
        program.chmod(0o755)
        wanted = {
            "program": str(program),
            "view": str(view),
            "shares": [(str(shared), False, True)],
            "owner": OWNER,
            "size": IDS,
            "socket": 0,
            "parent": os.getpid(),
        }
        done = subprocess.run(sharing.command(wanted), capture_output=True, text=True, check=False)
        lines = done.stdout.split("\n")
        assert "NoNewPrivs:\t1" in lines, json.dumps([done.stdout, done.stderr])
        assert "Seccomp:\t2" in lines
        assert "Uid:\t0\t0\t0\t0" in lines, "as it sees itself"
        assert "made" in lines
        assert "lent" not in lines
        found = (shared / "file").stat()
        assert (found.st_uid, found.st_mode & 0o7777) == (0, 0o755)
