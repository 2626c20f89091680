"""What of this machine a box without an image sees: what its program needs, and nothing else.

An empty root with read-only mounts, each at the path that it has here: the system's programs and
libraries, the interpreter with what is installed for it, the workload's source. A path's parents
are made in the root, so that it makes no difference whether they are open to others here.

Rules:
- What is hidden, such as the state of the run, is not shown either where a mount would contain it.
- Of /etc, only what libraries cannot do without; its users are the box's own, its
  hosts those that every box has.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bedstone.errors import InvalidError
from bedstone.sandbox import mounts
from bedstone.sandbox.box import Mount

SYSTEM: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC_FOLDERS: Final = ("alternatives", "ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted")
_ETC_FILES: Final = (
    "ld.so.cache", "localtime", "timezone", "os-release", "mime.types", "protocols", "services",
    "ssl/openssl.cnf",
)  # fmt: skip
_NOT_OF_IMAGES: Final = ("/dev/", "/proc/", "/run/bedstone/", "/sys/")
_HIDDEN: Final = 4096
_PEOPLE: Final = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\n"
    "{user}:x:{uid}:{gid}:{user}:/tmp:/usr/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": "root:x:0:\n{user}:x:{gid}:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
USER: Final = "app"


def compose(
    root: Path,
    shown: Iterable[Path],
    hidden: Iterable[Path],
    user: tuple[int, int],
    extra: Sequence[Mount] = (),
    links: Iterable[Path] = (),
) -> tuple[Mount, ...]:
    """Make the root of a box, and say what is mounted over it.

    Args:
        root: the folder to make; what was there is removed.
        shown: absolute paths that it has beside the system's; those that are not there are left
            out.
        hidden: absolute paths of folders whose content it never has.
        user: the box's user and group.
        extra: mounts beside those.
        links: absolute paths of symbolic links that it has as well, whatever they lead to.

    Raises:
        InvalidError: something that is to be shown is hidden.
        OSError: the root cannot be written.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o755, parents=True)
    root.chmod(0o755)
    wanted: dict[str, Path] = {}
    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            (root / name).symlink_to(path.readlink())
        elif path.is_dir():
            wanted[str(path)] = path
    for name in _ETC_FOLDERS:
        path = Path("/etc", name)
        if path.is_dir() and Path(os.path.realpath(path)) == path:
            wanted[str(path)] = path
    _write_etc(root, *user)
    wanted |= dict(_found(shown))
    binds = [Mount(str(source), target) for target, source in _outermost(wanted)]
    all_mounts = [*binds, *_hide(binds, hidden), *extra]
    for mount in all_mounts:
        _place(root, mount)
    for link in links:
        _link(root, link, binds)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    return tuple(all_mounts)


def _found(shown: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Where paths are, and where their links lead; the system's places are there anyway."""
    for path in shown:
        found = Path(os.path.realpath(path))
        if found.exists():
            if not systems(path):
                yield os.path.normpath(path), found
            yield str(found), found


def _hide(binds: Sequence[Mount], hidden: Iterable[Path]) -> Iterator[Mount]:
    secrets = {Path(os.path.realpath(path)) for path in hidden}
    for secret in sorted(secrets):
        if not secrets.isdisjoint(secret.parents):
            continue
        for mount in binds:
            source = Path(mount.source)
            if source.is_relative_to(secret):
                raise InvalidError(
                    f"{mount.target} is in {secret}, which no box sees",
                    hint="keep sources, and what is installed, out of the folders of Bedstone",
                )
            if secret.is_relative_to(source) and secret.is_dir():
                target = Path(mount.target, secret.relative_to(source))
                yield Mount("tmpfs", str(target), kind="tmpfs", size=_HIDDEN)


def _outermost(wanted: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Without those that another one shows anyway, by target."""
    kept: dict[str, Path] = {}
    for target in sorted(wanted):
        source = wanted[target]
        for parent in Path(target).parents:
            outer = kept.get(str(parent))
            if outer is not None and outer / Path(target).relative_to(parent) == source:
                break
        else:
            kept[target] = source
            yield target, source


def _write_etc(root: Path, uid: int, gid: int) -> None:
    etc = root / "etc"
    etc.mkdir(mode=0o755)
    for name in _ETC_FILES:
        with contextlib.suppress(OSError):
            data = Path("/etc", name).read_bytes()
            place = etc / name
            place.parent.mkdir(mode=0o755, exist_ok=True)
            place.write_bytes(data)
            place.chmod(0o644)
    for name, text in _PEOPLE.items():
        (etc / name).write_text(text.format(user=USER, uid=uid, gid=gid))
        (etc / name).chmod(0o644)


def _place(root: Path, mount: Mount) -> None:
    """Make the place of a mount; one that is inside another mount has it there."""
    place = root / mount.target.lstrip("/")
    _make_parents(root, place)
    if mount.kind == "tmpfs" or not stat.S_ISREG(_mode(mount.source)):
        place.mkdir(exist_ok=True)
        place.chmod(0o755)
    else:
        place.touch()
        place.chmod(0o644)


def _link(root: Path, link: Path, binds: Sequence[Mount]) -> None:
    """Make a link that is here in the root as well, unless a mount shows it."""
    if not any(link.is_relative_to(bind.target) for bind in binds):
        place = root / str(link).lstrip("/")
        _make_parents(root, place)
        place.symlink_to(link.readlink())


def _make_parents(root: Path, place: Path) -> None:
    parents = [parent for parent in place.parents if parent != root and root in parent.parents]
    for parent in reversed(parents):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o755)


def _mode(path: str) -> int:
    """The kind of what is there; what is made later is a folder."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - a string is what it is
    except OSError:
        return 0


def systems(path: Path) -> bool:
    """Whether a box has it in any case, or never: what is the system's, and the root itself."""
    return path == Path("/") or path.parts[1] in SYSTEM


def program_inside(root: Path, name: str, path: str) -> str:
    """The path of a program of an image by its name; the name itself if PATH there has none."""
    if "/" in name:
        return name
    for folder in path.split(os.pathsep):
        place = f"{folder.rstrip('/')}/{name}"
        if not folder.startswith("/"):
            continue
        try:
            found = mounts.open_inside(root, place)
        except OSError:
            continue
        try:
            mode = os.fstat(found).st_mode
        finally:
            os.close(found)
        if stat.S_ISREG(mode) and mode & 0o111:
            return place
    return name


def check_inside(root: Path, program: str, cwd: str) -> None:
    """See that an image has a program, as `program_inside` found it: images do not change.

    Raises:
        InvalidError: it is not there, or is no program, or what it names to run it is not there.
    """
    if "/" not in program:
        raise _not_inside(f"program not found in the image: {program}")
    place = posixpath.normpath(posixpath.join(cwd, program))
    if place.startswith(_NOT_OF_IMAGES):
        return
    try:
        found = mounts.open_inside(root, place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_inside(f"program not found in the image: {program}") from error
    except OSError:
        return  # nobody knows; the start will tell
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode) or not mode & 0o111:
            raise InvalidError(f"{program} in the image is no program that can be executed")
        interpreter = _interpreter(found)
        if interpreter and not interpreter.startswith(_NOT_OF_IMAGES):
            os.close(mounts.open_inside(root, posixpath.join(cwd, interpreter)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_inside(
            f"{program} in the image is to be run by {interpreter!r}, which is not in it"
        ) from error
    except OSError:
        return
    finally:
        os.close(found)


def _interpreter(program: int) -> str:
    """What the first line of a script names (execve(2)); empty for others."""
    with open(f"/proc/self/fd/{program}", "rb") as file:  # noqa: PTH123 - of a descriptor
        head = file.read(256)
    if not head.startswith(b"#!"):
        return ""
    words = head[2:].split(b"\n")[0].strip(b" \t").replace(b"\t", b" ").split(b" ")
    return os.fsdecode(words[0].split(b"\0")[0])


def _not_inside(text: str) -> InvalidError:
    return InvalidError(text, hint="correct `command:`, or the image's entry point")


def find_program(name: str, path: str, cwd: Path, mounted: Sequence[Mount]) -> str:
    """The program as the box can run it: a name of PATH, or a path, that is in the box.

    Raises:
        InvalidError: it is not on this machine, or not in the box.
    """
    found = str(cwd / name) if "/" in name else shutil.which(name, path=path)
    if found is None or not os.path.exists(found):  # noqa: PTH110
        raise InvalidError(f"program not found: {name}")
    within = Path(os.path.normpath(found))
    shown = [Path(mount.target) for mount in mounted if mount.kind == "bind"]
    shown += [Path("/", name) for name in SYSTEM]
    if not any(within.is_relative_to(target) for target in shown):
        raise InvalidError(
            f"program {within} is not in its box: what is not below /usr, the interpreter's folder "
            "or its `path` is left out",
            hint="put it into one of them, or use an image",
        )
    return str(within)
