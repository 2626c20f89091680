"""The root of a box: a directory of this machine, or an image, pulled when it is not here."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bedstone.errors import InvalidError, NotFoundError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system, and how its author wants programs in it to be run.

    Attributes:
        path: its directory, which nobody writes to.
        entrypoint: what comes before the command.
        command: what runs when nothing else is asked for.
        env: variables.
        cwd: working directory.
        user: `NAME[:GROUP]` or numbers; empty is root.
        image: its name; empty for a directory.
        notes: why an image was not mounted lazily, if it was not.
        digest: of what that name means; empty for a directory.
    """

    path: Path
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    cwd: str = "/"
    user: str = ""
    image: str = ""
    notes: tuple[str, ...] = ()
    digest: str = ""


async def find_root(
    name: str,
    box: str,
    *,
    lazy: bool = True,
    tell: Callable[[str], None] = lambda _text: None,
) -> Root:
    """A root by its name: a path, if it has a leading `/` or `.`, else an image.

    Args:
        name: path or image.
        box: the id of the box that needs it; an image is kept for it until `let_go`.
        lazy: whether an image may be mounted before all of it is here (root, Linux 6.12 or loop
            devices); a driver that reads all of it at once does better without.
        tell: is told that an image is being fetched.

    Raises:
        InvalidError, NotFoundError, UnavailableError, VerificationError: it cannot be had.
    """
    if name.startswith(("/", ".")):
        path = Path(os.path.realpath(name))
        if not path.is_dir():
            raise NotFoundError(f"no directory {name}", hint="name a root directory, or an image")
        return Root(path)
    from bedstone.images.home import images_directory
    from bedstone.images.reference import Reference
    from bedstone.images.starting import start_root
    from bedstone.images.store import ContentStore

    wanted = Reference.parse(name)
    content = ContentStore(images_directory())
    started = await start_root(content, wanted, lease_name(box), lazy=lazy, tell=tell)
    run = started.image.config.config
    pairs = (text.partition("=") for text in run.env)
    return Root(
        started.path,
        run.entrypoint,
        run.cmd,
        {"PATH": DEFAULT_PATH} | {key: value for key, _, value in pairs},
        posixpath.normpath(run.working_dir or "/"),
        run.user,
        wanted.familiar,
        started.notes,
        started.image.root.digest,
    )


def let_go(box: str) -> None:
    """The box needs its image no longer. Idempotent. Blocks."""
    _release(lambda lease: lease == lease_name(box))


def let_go_all(beginning: str) -> None:
    """No box whose id begins so needs its image any longer. Idempotent. Blocks."""
    _release(lambda lease: lease.startswith(lease_name(beginning)))


def _release(chosen: Callable[[str], bool]) -> None:
    from bedstone.images.home import images_directory

    if not images_directory().is_dir():
        return
    from bedstone.images.store import ContentStore

    content = ContentStore(images_directory())
    for lease in content.leases():
        if chosen(lease.name):
            lease.release()
    if any(content.root.glob("lazy/run-*")):
        from bedstone.images.lazy.holding import sweep

        sweep(content)


def lease_name(box: str) -> str:
    """What keeps a box's image from being collected."""
    return f"box {box}"


def find_user(root: Path, text: str) -> tuple[int, int]:
    """The user and group ids of `USER[:GROUP]`, by numbers or by the root's own /etc/passwd.

    Raises:
        InvalidError: it has no such user or group.
    """
    user, _, group = text.partition(":")
    found = _lookup(root, "passwd", user or "0")
    uid = int(found[2]) if found else _number("user", user or "0")
    if group:
        line = _lookup(root, "group", group)
        return uid, int(line[2]) if line else _number("group", group)
    return uid, int(found[3]) if found else 0


def _lookup(root: Path, file: str, name: str) -> list[str] | None:
    """The line of /etc/FILE for a name or a number; links are not followed, they may lead out."""
    try:
        folder = os.open(root / "etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(file, flags, dir_fd=folder), errors="replace") as lines:
                rows = [line.rstrip("\n").split(":") for line in lines.read(1 << 20).splitlines()]
        finally:
            os.close(folder)
    except OSError:
        return None
    for row in rows:
        if len(row) > 3 and name in (row[0], row[2]) and row[2].isdigit() and row[3:]:
            return row
    return None


def _number(what: str, text: str) -> int:
    if not text.isdigit() or int(text) >= 65536:
        raise InvalidError(f"the root has no {what} {text!r}", hint="give a number below 65536")
    return int(text)
