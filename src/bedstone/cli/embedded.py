"""Starts and stops the embedded run of one state directory.

Invariant: a run that cannot come up is stopped again, with everything that it started; data that
was there before is not touched.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedstone.cli.ports import check_port
from bedstone.errors import EXIT_STATUS, Error, InvalidError, UnavailableError, from_code

if TYPE_CHECKING:
    from bedstone.processes.client import RunInfo
    from bedstone.processes.spec import ProcessInfo, ProcessSpec

NODE_NAME = "local"
_LOOPBACK = "127.0.0.1"
_SESSION_PORTS = range(20000, 32000)
"""Below the ports that Linux gives to outgoing connections (ip_local_port_range), which could take
the server's while it restarts."""
_PASSED_ON = ("BEDSTONE_HOME", "BEDSTONE_GUEST", "BEDSTONE_REGISTRY_MIRRORS")
"""Where boxes and images of the machine are, and where images come from."""
_TAIL = 5
_PATIENCE = 3
"""Restarts after which the server or the node is believed to be broken, if it does not last."""
_STABLE = 5.0
_REACTION = 5.0
"""Seconds in which a supervisor says what it runs, if it reacts at all."""
_ROOM = 8 << 20
"""Bytes free on the disk, to start with."""


@dataclass(frozen=True, slots=True)
class Options:
    """How an embedded run is started.

    Args:
        detached: it outlives the command.
        api_listen: `HOST:PORT` on which the API is also served, by TLS and tokens.
        console: the port of the web console, `0` for any that is free, or `off`; None: the one that
            it had before, or any.
        isolate: whether instances get their own network namespaces where possible.
        certificate_seconds: how long a workload's certificate is valid.
        timeout: seconds for the server to answer.
    """

    detached: bool = False
    api_listen: str | None = None
    console: str | None = None
    isolate: str = "auto"
    certificate_seconds: float | None = None
    timeout: float = 60.0


@asynccontextmanager
async def exclusive(state_dir: Path, busy: Callable[[], None]) -> AsyncIterator[None]:
    """Keep other commands from starting or stopping this run meanwhile.

    A run that is just being started has no supervisor yet that could be found, and would be taken
    for what a dead one left.

    Args:
        state_dir: the run's, created if missing.
        busy: called once if another command must be waited for.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(state_dir, error) from error
    try:
        told = False
        while not _locked(handle):
            if not told:
                busy()
                told = True
            await asyncio.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_room(folder: Path, needed: int = _ROOM) -> None:
    """UnavailableError where the disk is as good as full: nothing could be acknowledged on it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(
            f"the disk of {folder} is full: {free >> 10} KiB free, expected {needed >> 10} KiB",
            hint="make room, then `bedstone up` again",
        )


def unwritable(state_dir: Path, error: OSError) -> Error:
    """What to say where the state cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room on the disk"
    elif state_dir.exists():
        hint = f"{state_dir} is another user's: run the command as that user"
    else:
        hint = f"make {state_dir.parent} writable for you"
    return UnavailableError(
        f"cannot write {error.filename or state_dir}: {error.strerror}", hint=hint
    )


async def start(state_dir: Path, options: Options) -> RunInfo:
    """Start a supervisor with a server and a node, and wait until the API answers.

    Raises:
        ConflictError: another supervisor runs on this state.
        UnavailableError: it cannot come up; nothing is left running.
    """
    from bedstone.processes.client import run_directory, start_supervisor

    logs = state_dir / "logs"
    try:
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir = run_directory(state_dir.resolve())
        processes = _processes(state_dir.resolve(), run_dir, options)
        offset = _size(logs / "server.log")
        run = await start_supervisor(
            state_dir,
            processes,
            detached=options.detached,
            log=logs.resolve() / "supervisor.log",
        )
    except OSError as error:
        raise unwritable(state_dir, error) from error
    try:
        await _answers(run, logs / "server.log", offset, options.timeout)
    except BaseException:
        await abandon(run)
        raise
    return run


async def returns(run: RunInfo, timeout: float = 20.0) -> None:
    """Wait until the server of a run that lives answers: it may be starting again just now."""
    from bedstone.client.api import Client
    from bedstone.client.transport import Endpoint

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    async with Client(Endpoint(socket=Path(run.run_dir, "api.sock"))) as client:
        while True:
            try:
                await client.health()
                return
            except UnavailableError as error:
                if not run.alive() or loop.time() > deadline:
                    error.hint = f"see {run.state_dir}/logs/server.log"
                    raise
            await asyncio.sleep(0.05)


async def _answers(run: RunInfo, log: Path, offset: int, timeout: float) -> None:
    """Wait until the server answers; fail as soon as it is clear that it never will."""
    from bedstone.client.api import Client
    from bedstone.client.transport import Endpoint
    from bedstone.processes.client import SupervisorClient

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    api = Endpoint(socket=Path(run.run_dir, "api.sock"))
    async with SupervisorClient(run.socket) as supervisor, Client(api) as client:
        while True:
            with suppress(UnavailableError):
                await client.health()
                return
            server = await supervisor.get("server")
            if server.state != "running" and (server.restarts >= 1 or server.pid is None):
                raise ended(server, log, offset)
            if loop.time() > deadline:
                raise UnavailableError(
                    f"the server does not answer after {timeout:g} s"
                    f"{_summary(_written(log, offset))}",
                    hint=f"see {log}",
                )
            await asyncio.sleep(0.02)


async def ailment(run: RunInfo) -> Error | None:
    """Why a run can never work: its server or its node ends each time it is started."""
    from bedstone.processes.client import SupervisorClient

    try:
        check_room(Path(run.state_dir), _ROOM // 8)
    except UnavailableError as error:
        return error
    with suppress(UnavailableError):
        async with SupervisorClient(run.socket) as supervisor:
            for info in await supervisor.list():
                own = info.name in ("server", "node") and info.restarts >= _PATIENCE
                if own and time.time() - (info.started_at or 0) < _STABLE:
                    return ended(info, Path(run.state_dir, "logs", f"{info.name}.log"))
    return None


def ended(info: ProcessInfo, log: Path, offset: int = 0) -> Error:
    """The failure of the server or the node: as it logged it, else by its exit status."""
    lines = _written(log, offset)
    for line in reversed(lines):
        reason, code, hint = line.get("reason"), line.get("code"), line.get("hint")
        if isinstance(reason, str) and isinstance(code, str):
            message = f"the {info.name} does not start: {reason}"
            return from_code(code, message, hint=str(hint) if hint else f"see {log}")
    kinds = {status: code for code, status in EXIT_STATUS.items()}
    code = kinds.get(info.exit_code or 0, UnavailableError.code)
    message = f"the {info.name} does not start: {info.ending()}{_summary(lines)}"
    return from_code(code, message, hint=f"see {log}")


def _summary(lines: list[dict[str, Any]]) -> str:
    """The last lines of a log as part of a message."""
    return "".join(f"\n  {line['event']}" for line in lines[-_TAIL:])


def _written(log: Path, offset: int) -> list[dict[str, Any]]:
    """What was logged since the log had `offset` bytes; the frames of a traceback are left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(offset, _size(log) - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines: list[dict[str, Any]] = []
    for line in text.splitlines():
        if not line or line[0].isspace() or line.startswith(("Traceback", "+", "|")):
            continue
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict) and "event" in found:
            lines.append(found)
        else:
            lines.append({"event": line})
    return lines


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def clear_boxes(state_dir: Path) -> list[str]:
    """Delete the boxes that the last run of a state has left; why some stay.

    Nothing of the run may run any more.
    """
    folder = _read(state_dir / "node.json")
    home, run_dir = Path(folder.get("boxes", "")), Path(folder.get("run_dir", ""))
    if not home.is_absolute() or not run_dir.is_absolute() or not home.is_dir():
        return []
    from bedstone.node.images import MachineImages
    from bedstone.sandbox.boxed import clear_away, prefix

    own = f"{prefix(run_dir)}*"
    if not any(home.glob(own)) and not any((home / ".workloads").glob(own)):
        return []
    return await clear_away(home, run_dir, MachineImages())


def _processes(state_dir: Path, run_dir: Path, options: Options) -> list[ProcessSpec]:
    from bedstone.boxes.home import boxes_directory
    from bedstone.processes.spec import STAGE_NODE, STAGE_SERVER, ProcessSpec

    server: dict[str, Any] = {
        "state_dir": str(state_dir),
        "run_dir": str(run_dir),
        "session": f"127.0.0.1:{_free_port()}",
        "api_socket": str(run_dir / "api.sock"),
    }
    if options.api_listen:
        server["api_listen"] = options.api_listen
    if options.console != "off":
        server["console"] = f"{_LOOPBACK}:{int(options.console or 0) or _free_port()}"
    if options.certificate_seconds:
        server["certificate_seconds"] = options.certificate_seconds
    node = {
        "name": NODE_NAME,
        "address": "127.0.0.1",
        "state_dir": str(state_dir),
        "run_dir": str(run_dir),
        "api": str(run_dir / "api.sock"),
        "supervisor": str(run_dir / "supervisor.sock"),
        "enforce": options.isolate,
        "boxes": str(boxes_directory()),
    }
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("BEDSTONE_") or key in _PASSED_ON
    }
    return [
        ProcessSpec(
            name=name,
            argv=(sys.executable, "-P", "-m", f"bedstone.{name}", "--config", str(path)),
            env=env,
            stdout=str(state_dir / "logs" / f"{name}.log"),
            stage=stage,
            restart="always",
        )
        for name, stage, path in (
            ("server", STAGE_SERVER, _write(state_dir / "server.json", server)),
            ("node", STAGE_NODE, _write(state_dir / "node.json", node)),
        )
    ]


def started_with(state_dir: Path) -> Options:
    """The options with which the run that lives was started, as its processes were told them."""
    server, node = (_read(state_dir / name) for name in ("server.json", "node.json"))
    address = str(server.get("console") or "off")
    return Options(
        api_listen=server.get("api_listen"),
        console=address.rpartition(":")[2],
        isolate=node.get("enforce", "auto"),
        certificate_seconds=server.get("certificate_seconds"),
    )


def console_port(state_dir: Path, asked: str | None, gateway: int | None) -> tuple[str, str]:
    """The port for the console of a run that is to be started, and what to tell a person, if any.

    Args:
        state_dir: the run's; the port that it had the last time is kept, for bookmarks' sake.
        asked: what was asked for; see `Options`.
        gateway: the port of the app's gateway.

    Raises:
        ConflictError: another program listens on the port that was asked for.
        InvalidError: the gateway shall listen there.
    """
    if asked == "off":
        return asked, ""
    if asked is not None and int(asked):
        if int(asked) == gateway:
            raise InvalidError(
                f"port {asked} is the gateway's", hint="choose another --console-port"
            )
        check_port(_LOOPBACK, int(asked), "console", "--console-port")
        return asked, ""
    before = _read(state_dir / "server.json").get("console")
    port = str(before).rpartition(":")[2] if before and asked is None else ""
    if port.isdigit():
        try:
            check_port(_LOOPBACK, int(port), "console", "--console-port")
        except Error as error:
            fresh = _free_port(gateway)
            return str(fresh), f"{error.message}; it moves to {fresh}"
        if int(port) != gateway:
            return port, ""
    return str(_free_port(gateway)), ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> Path:
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    draft.replace(path)
    return path


def _free_port(but: int | None = None) -> int:
    for port in random.sample(_SESSION_PORTS, 64):
        if port == but:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UnavailableError("no port of 127.0.0.1 between 20000 and 32000 is free")


def check_listen(text: str) -> str:
    """A `HOST:PORT` that a user gave; InvalidError if it is not one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidError(f"got {text!r}, expected HOST:PORT", hint="such as 127.0.0.1:8443")
    return text


def check_console(text: str) -> str:
    """A port for the console that a user gave, or `off`; InvalidError if it is neither."""
    if text != "off" and not (text.isdigit() and int(text) < 65536):
        raise InvalidError(
            f"got --console-port {text!r}, expected a port, 0 or off", hint="0 takes a free one"
        )
    return text


async def abandon(run: RunInfo) -> None:
    """End a run that did not come up, by force if need be."""
    from bedstone.processes.client import SupervisorClient

    with suppress(Error, TimeoutError):
        async with asyncio.timeout(15), SupervisorClient(run.socket) as supervisor:
            await supervisor.shutdown()
    await force(run)


async def force(run: RunInfo, patience: float = 5.0) -> None:
    """End the supervisor if it still lives: twice asked, it kills; then it is killed itself."""
    import signal

    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if not run.alive() or not run.identity.send_signal(number):
            break
        await _end_of(run, 0.2 if number == signal.SIGTERM else patience)
    from bedstone.processes.client import cleanup_stale

    await asyncio.to_thread(cleanup_stale, Path(run.state_dir))
    await clear_boxes(Path(run.state_dir))


async def _end_of(run: RunInfo, patience: float) -> None:
    """Wait for a supervisor's end, but not longer than `patience` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while run.alive() and loop.time() < deadline:  # noqa: ASYNC110 - another's process
        await asyncio.sleep(0.005)


async def shut_down(run: RunInfo, timeout: float = 120.0) -> list[str]:
    """Stop a run in good order; the names of the processes that were stopped."""
    from bedstone.processes.client import SupervisorClient

    names: list[str] = []
    try:
        async with (
            asyncio.timeout(_REACTION) as patience,
            SupervisorClient(run.socket) as supervisor,
        ):
            names = [info.name for info in await supervisor.list() if info.running]
            patience.reschedule(asyncio.get_running_loop().time() + timeout)
            await supervisor.shutdown()
            await _end_of(run, timeout)  # it answers just before
            await clear_boxes(Path(run.state_dir))
    except (Error, TimeoutError):
        # It ended while it was asked, or it does not react.
        await force(run)
    return names
