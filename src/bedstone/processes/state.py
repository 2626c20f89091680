"""Where a run keeps its state, who owns it, and how a dead run is cleared away.

`.bedstone/run.json` names the live supervisor, written atomically; `.bedstone/supervisor.lock` is
held (flock) by it for its whole life, which decides who is alive: the file alone decides nothing.
Sockets lie in a short run directory, since a Unix socket's path is limited to 107 bytes.

Invariant: only the holder of the lock kills strays or deletes files of a run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bedstone.errors import ConflictError, DeniedError, UnavailableError
from bedstone.processes import warden
from bedstone.processes.cgroups import ControlGroups, run_key
from bedstone.processes.identity import ProcessIdentity, boot_id, read_stat
from bedstone.processes.netns import unmount_below
from bedstone.processes.spec import RUN_MARKER

_LOCK = "supervisor.lock"
_RUN = "run.json"
ROOT_RUNS = Path("/run/bedstone")
"""Where the run directories are of all that root runs on this machine."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A supervisor's run."""

    run_id: str
    pid: int
    start_time: int
    boot_id: str
    state_dir: str
    run_dir: str
    socket: str
    started_at: float

    @property
    def identity(self) -> ProcessIdentity:
        """The supervisor's."""
        return ProcessIdentity(self.pid, self.start_time, self.boot_id)

    def alive(self) -> bool:
        """Whether the supervisor still runs."""
        return self.identity.alive()


def state_id(state_dir: Path) -> str:
    """Identity of a state directory: two with the same path, in two containers, differ."""
    path = state_dir.resolve()
    found = path.stat()
    text = f"{path}\0{found.st_dev}\0{found.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_marker(state_dir: Path, run_id: str = "") -> str:
    """The environment entry of a run; without `run_id`, the prefix of all runs of the state."""
    return f"{RUN_MARKER}={state_id(state_dir)}/{run_id}"


def journal_path(run_dir: Path, run_id: str) -> Path:
    """The run's journal. Never another run's name: the warden of a dead run reads it by path."""
    return run_dir / f"journal-{run_id}"


def run_directory(state_dir: Path) -> Path:
    """The short directory for this state's sockets, created and verified to be ours.

    Mode 0711 as root, since engines with their own user must reach their sockets in it; else 0700.
    """
    uid = os.getuid()
    if uid == 0:
        base, mode = ROOT_RUNS, 0o711
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        usable = runtime and os.access(runtime, os.W_OK) and len(runtime) < 60
        base = Path(runtime, "bedstone") if runtime and usable else Path(f"/tmp/bedstone-{uid}")  # noqa: S108
        mode = 0o700
    path = base / state_id(state_dir)
    for folder in (base, path):
        try:
            folder.mkdir(mode=mode, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot create the run directory {folder}: {error.strerror}",
                hint="set XDG_RUNTIME_DIR to a directory of yours",
            ) from error
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
            raise DeniedError(
                f"the run directory {folder} is not ours: owner {found.st_uid}, expected {uid}",
                hint="remove it, or set XDG_RUNTIME_DIR to a directory of yours",
            )
        if stat.S_IMODE(found.st_mode) != mode:
            folder.chmod(mode)
    return path


@contextmanager
def locked(state_dir: Path, patience: float = 0.0) -> Iterator[int]:
    """Hold the state's lock; ConflictError if a live supervisor does."""
    handle = acquire(state_dir, patience)
    try:
        yield handle
    finally:
        os.close(handle)


def acquire(state_dir: Path, patience: float = 0.0) -> int:
    """The lock's descriptor; it is held until that is closed, or its owner dies."""
    try:
        handle = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnavailableError(
            f"cannot write the state directory {state_dir}: {error.strerror}",
            hint="make the directory writable for you",
        ) from error
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            os.close(handle)
            raise ConflictError(
                f"another supervisor runs on {state_dir}", hint="stop it with `bedstone down`"
            ) from error
        return handle


def write_run(info: RunInfo) -> None:
    """Publish a run, atomically."""
    path = Path(info.state_dir, _RUN)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(info), indent=1) + "\n")
    draft.chmod(0o600)
    draft.replace(path)


def read_run(state_dir: Path) -> RunInfo | None:
    """The run that was last published, dead or alive; None if none is there and readable.

    Raises:
        DeniedError: the state belongs to another user.
    """
    try:
        return RunInfo(**json.loads((state_dir / _RUN).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    except PermissionError as error:
        raise DeniedError(
            f"{state_dir} belongs to another user", hint="run the command as that user"
        ) from error


def live_run(state_dir: Path) -> RunInfo | None:
    """The run whose supervisor is alive."""
    info = read_run(state_dir)
    return info if info is not None and info.alive() else None


def cleanup_stale(state_dir: Path) -> RunInfo | None:
    """Find the live run of a state, or clear a dead one away.

    Returns:
        the live run, to be adopted; None when none is alive and nothing of one is left.
    """
    if not state_dir.exists():
        return None
    try:
        # A supervisor that has just been killed may share its lock, for an instant, with a child
        # that has not reached its program yet.
        with locked(state_dir, patience=0.0 if live_run(state_dir) else 1.0):
            clear(state_dir)
            return None
    except ConflictError:
        info = live_run(state_dir)
        deadline = time.monotonic() + 2.0
        while info is None and time.monotonic() < deadline:
            time.sleep(0.05)  # it holds the lock and is about to publish itself
            info = live_run(state_dir)
        if info is None:
            raise
        return info


def clear(state_dir: Path, run_dir: Path | None = None) -> None:
    """End strays of every earlier run and remove its files. The caller holds the lock."""
    info = read_run(state_dir)
    folder = run_dir or (Path(info.run_dir) if info else None)
    # Numbers and start times mean something only in the boot that they were written in.
    this_boot = info is not None and info.boot_id == boot_id()
    journal = journal_path(folder, info.run_id) if folder and info and this_boot else None
    left = warden.sweep(
        run_marker(state_dir),
        str(journal) if journal else None,
        _self_and_ancestors(),
        patience=10.0,
    )
    if left:
        raise UnavailableError(
            f"processes of an earlier run do not end: {', '.join(map(str, left))}",
            hint="they may wait for a device; see `ps -o stat,wchan`",
        )
    if folder is not None:
        remove_run_directory(folder)
    ControlGroups(run_key(state_id(state_dir))).close()
    (state_dir / _RUN).unlink(missing_ok=True)


def remove_run_directory(folder: Path) -> None:
    """Unmount what is mounted below a run directory, then delete it."""
    if folder.is_symlink() or not folder.exists() or folder.stat().st_uid != os.getuid():
        return
    if os.getuid() == 0:
        unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _self_and_ancestors() -> frozenset[int]:
    pids = {os.getpid()}
    parent = os.getppid()
    while parent > 1 and parent not in pids:
        pids.add(parent)
        found = read_stat(parent)
        parent = found[1] if found else 0
    return frozenset(pids)
