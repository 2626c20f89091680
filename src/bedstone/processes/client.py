"""Talks to the supervisor, and starts one.

A client holds one connection and may have any number of requests in flight on it. When the
connection ends, every request that waits fails with UnavailableError, and so does every later one:
connecting again is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bedstone.errors import Error, UnavailableError, from_code
from bedstone.processes.spec import RUN_MARKER, ProcessInfo, ProcessSpec
from bedstone.processes.state import RunInfo, cleanup_stale, run_directory, state_id
from bedstone.processes.supervisor import SupervisorConfig

__all__ = [
    "ProcessEvent",
    "RunInfo",
    "SupervisorClient",
    "cleanup_stale",
    "run_directory",
    "start_supervisor",
]

_LINE_LIMIT = 16 << 20

EventKind = Literal["current", "synced", "started", "exited", "failed", "forgotten"]


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A change of one process; `current` events and one `synced` (without process) come first."""

    kind: EventKind
    process: ProcessInfo | None


class SupervisorClient:
    """`async with SupervisorClient(socket) as client: ...`; one connection, safe for many tasks."""

    def __init__(self, socket: str | Path) -> None:
        self._socket = str(socket)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect; UnavailableError if there is no supervisor."""
        self._reader, self._writer = await _connect(self._socket)
        self._task = asyncio.get_running_loop().create_task(self._receive(self._reader))

    async def close(self) -> None:
        """Let go of the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def ping(self) -> str:
        """The run's identity."""
        return str((await self._request("ping"))["run_id"])

    async def spawn(self, spec: ProcessSpec) -> ProcessInfo:
        """Start a process, or adopt the one of this name that runs with the same specification.

        Returns:
            its record; `state` is "failed" with a `message` if the program could not be run.

        Raises:
            ConflictError: the name runs with another specification.
        """
        return ProcessInfo.from_json(await self._request("spawn", spec=spec.to_json()))

    async def signal(self, name: str, number: int) -> ProcessInfo:
        """Signal a running process."""
        return ProcessInfo.from_json(await self._request("signal", name=name, signal=int(number)))

    async def stop(self, name: str, grace: float | None = None) -> ProcessInfo:
        """Ask a process to end, kill it with all it left after `grace` seconds; returns its end."""
        return ProcessInfo.from_json(await self._request("stop", name=name, grace=grace))

    async def forget(self, name: str) -> None:
        """Drop the record of a process that has ended; idempotent."""
        await self._request("forget", name=name)

    async def get(self, name: str) -> ProcessInfo:
        """One process; NotFoundError."""
        return ProcessInfo.from_json(await self._request("get", name=name))

    async def list(self) -> list[ProcessInfo]:
        """Every process, ended ones included until they are forgotten."""
        return [ProcessInfo.from_json(item) for item in await self._request("list")]

    async def watch(self) -> AsyncGenerator[ProcessEvent, None]:
        """What is, then what changes, without a gap, on a connection of its own.

        Raises:
            UnavailableError: the supervisor has gone.
        """
        reader, writer = await _connect(self._socket)
        try:
            await _send(writer, {"id": 0, "op": "watch"})
            async for message in _messages(reader):
                if "event" in message:
                    process = message["event"]["process"]
                    info = ProcessInfo.from_json(process) if process else None
                    yield ProcessEvent(message["event"]["kind"], info)
            raise _gone()
        finally:
            writer.close()

    async def create_netns(self, name: str, userns: str | None = None) -> Path:
        """Make a network namespace (idempotent); UnavailableError without the privilege.

        `userns` is the path of the user namespace that owns it; else the supervisor's own.
        """
        return Path(await self._request("netns_create", name=name, userns=userns))

    async def create_userns(self, name: str, first: int, count: int) -> Path:
        """Make a user namespace (idempotent) of the users from `first` on; stays until the end.

        Its root is `first`; the others have their own numbers. UnavailableError without root.
        """
        return Path(await self._request("userns_create", name=name, first=first, count=count))

    async def delete_netns(self, name: str) -> None:
        """Let go of a network namespace; idempotent."""
        await self._request("netns_delete", name=name)

    async def shutdown(self) -> None:
        """Stop stage after stage; returns when nothing is left."""
        await self._request("shutdown")

    async def _request(self, operation: str, **arguments: Any) -> Any:
        if self._writer is None or self._task is None or self._task.done():
            raise _gone()
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await _send(self._writer, {"id": number, "op": operation, **arguments})
            return await future
        finally:
            self._waiting.pop(number, None)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            async for message in _messages(reader):
                future = self._waiting.get(message.get("id", -1))
                if future is None or future.done():
                    continue
                if "error" in message:
                    future.set_exception(_rebuild(message["error"]))
                else:
                    future.set_result(message["ok"])
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_gone())


async def start_supervisor(
    state_dir: Path,
    processes: Sequence[ProcessSpec] = (),
    *,
    detached: bool = False,
    log: Path | None = None,
    timeout: float = 20.0,
) -> RunInfo:
    """Start a supervisor for a state directory. Call it from the main thread.

    Strays of a dead run are ended first. A foreground supervisor shuts down in good order when the
    thread that started it ends; a detached one outlives it.

    Args:
        state_dir: the run's state, created if missing.
        processes: started at once and kept alive (`restart="always"`).
        detached: whether it outlives its starter.
        log: file that its own messages are appended to.
        timeout: seconds to wait for it.

    Raises:
        ConflictError: another supervisor runs on this state.
        UnavailableError: it could not start.
    """
    state_dir = state_dir.resolve()
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot create the state directory {state_dir}: {error.strerror}",
            hint="make its parent writable for you",
        ) from error
    run_id = secrets.token_hex(6)
    config = SupervisorConfig(
        run_id=run_id,
        state_dir=str(state_dir),
        run_dir=str(run_directory(state_dir)),
        processes=tuple(processes),
        starter=None if detached else os.getpid(),
    )
    config_path = state_dir / f"supervisor-{run_id}.json"
    read, write = os.pipe()
    try:
        try:
            _write_private(config_path, json.dumps(config.to_json()))
            _spawn_supervisor(config_path, f"{state_id(state_dir)}/{run_id}", write, log)
        except OSError as error:
            raise UnavailableError(
                f"cannot start the supervisor: {error.filename or state_dir}: {error.strerror}",
                hint=f"make {state_dir} and its logs writable, and see that the disk has room",
            ) from error
        os.close(write)
        write = -1
        answer = await _read_answer(read, timeout)
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
        config_path.unlink(missing_ok=True)
    if "run" not in answer:
        with contextlib.suppress(OSError):  # not empty: another run's
            Path(config.run_dir).rmdir()
        raise _rebuild(answer)
    return RunInfo(**answer["run"])


def _spawn_supervisor(config: Path, marker: str, ready: int, log: Path | None) -> int:
    env = {key: value for key, value in os.environ.items() if not key.startswith("BEDSTONE_")}
    env[RUN_MARKER] = marker
    output = str(log) if log else os.devnull
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return os.posix_spawn(
        sys.executable,
        [
            *(sys.executable, "-P", "-m", "bedstone.processes.supervisor"),
            *("--config", str(config), "--ready-fd", "3"),
        ],
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, ready, 3),
        ],
        setsid=True,
    )


async def _read_answer(read: int, timeout: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    os.set_blocking(read, False)
    text = b""
    try:
        async with asyncio.timeout(timeout):
            while not text.endswith(b"\n"):
                readable = asyncio.Event()
                loop.add_reader(read, readable.set)
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(read)
                chunk = os.read(read, 65536)
                if not chunk:
                    break
                text += chunk
        answer: dict[str, Any] = json.loads(text)
        return answer
    except TimeoutError as error:
        raise UnavailableError(f"the supervisor did not start within {timeout:g} s") from error
    except ValueError as error:
        raise UnavailableError(
            "the supervisor ended before it was ready", hint="see its log"
        ) from error


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


async def _connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(path, limit=_LINE_LIMIT)
    except OSError as error:
        raise _gone() from error


async def _send(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
    try:
        await writer.drain()
    except OSError as error:
        raise _gone() from error


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            line = await reader.readline()
        except (OSError, ValueError):
            return
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)


def _rebuild(detail: dict[str, Any]) -> Error:
    return from_code(detail["code"], detail["message"], hint=detail.get("hint"))


def _gone() -> UnavailableError:
    return UnavailableError("the supervisor is gone", hint="start it with `bedstone up`")
