"""Shows folders of this machine to a guest: makes a view of them, and becomes virtiofsd.

The view is a folder with `0`, `1` … in a mount namespace of its own, so that nothing of it is seen
elsewhere, and nothing is left when it ends. What is read-only for the guest is so here, whatever
its kernel does. virtiofsd has the view as its root, can make no device, and is root of a user
namespace only: the owner of what belongs to user 0 on the disk, and on this machine nobody. It can
give no file a set-user-id bit, which would be root's for whoever runs it here.

A process of its own (`main`). Only the standard library is used.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bedstone.processes import linux, seccomp
from bedstone.sandbox import mounts
from bedstone.sandbox.alone import standard_python

PLACES: Final = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
"""Where distributions have virtiofsd."""
_SERVED: Final = "/mnt"
"""Where the view is too: the folders above a box's own may be closed to nobody in particular."""
FILES: Final = 1 << 18
"""It holds a descriptor for each file that the guest's kernel remembers."""


def main() -> None:
    """Serve what the JSON object of the first argument says.

    Fields: `program`, `view` (an empty folder), `shares` (triples of source, whether read-only,
    whether owners are mapped), `owner` and `size` of the user ids, `socket` (a descriptor that
    listens), `parent` (the process that it ends with).
    """
    wanted = json.loads(sys.argv[1])
    try:
        owner, size = wanted["owner"], wanted["size"]
        make_view(Path(wanted["view"]), wanted["shares"], owner, size)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        os.chdir("/")
        _become_nobody(owner, size)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if (program := seccomp.no_set_id()) is not None:
            linux.filter_calls(program)
    except OSError as error:
        sys.exit(f"mounts: {error}")
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != wanted["parent"]:
        sys.exit("mounts: nobody waits for them")
    options = ("announce_submounts", "modcaps=-mknod:-setfcap", f"source={_SERVED}")
    argv = [wanted["program"], f"--fd={wanted['socket']}", "--rlimit-nofile=0", "-f"]
    argv += [word for option in options for word in ("-o", option)]
    os.execv(argv[0], argv)  # noqa: S606 - what the driver found


def make_view(view: Path, shares: Sequence[Sequence[Any]], owner: int, size: int) -> None:
    """Mount every share below `view`, and that where everybody may go, in a namespace of its own.

    Raises:
        OSError: one cannot be mounted; names it.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", linux.MS_SLAVE | linux.MS_REC)
    mounts.mount("tmpfs", "shares", view, mounts.MS_NOSUID | mounts.MS_NODEV, "size=1m,mode=755")
    for number, (source, readonly, mapped) in enumerate(shares):
        shown = view / str(number)
        if stat.S_ISDIR(os.stat(source).st_mode):  # noqa: PTH116
            shown.mkdir()
        else:
            shown.touch()
        mounts.view(
            Path(source), shown, owner=owner if mapped else None, size=size, readonly=readonly
        )
    linux.mount(None, str(view), linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
    linux.mount(str(view), _SERVED, linux.MS_BIND | linux.MS_REC)


def _become_nobody(owner: int, size: int) -> None:
    with mounts.user_namespace(owner, size) as namespace:
        linux.setns(f"/proc/self/fd/{namespace}", linux.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def command(wanted: dict[str, Any]) -> tuple[str, ...]:
    """The command line that does it."""
    return (*standard_python(__name__), json.dumps(wanted))
