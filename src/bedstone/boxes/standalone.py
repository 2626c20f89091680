"""Boxes without an app: each with a shim that parents it, found again by its id.

`HOME/.run/ID/` has what the shim keeps (`shim` says what), and `box.json` with the isolation. The
box itself is its driver's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bedstone.boxes import shim
from bedstone.boxes.roots import let_go
from bedstone.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from bedstone.sandbox.box import BoxInfo, BoxSpec, check_id
from bedstone.sandbox.boxes import KIND, Boxes
from bedstone.sandbox.failing import read

_PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A box of a listing; `code` is its exit status once it has ended."""

    info: BoxInfo
    code: int | None = None


class Standalone:
    """The stand-alone boxes of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._drivers: dict[str, Boxes] = {}

    async def driver(self, isolation: str) -> Boxes:
        """The driver of that name, open. Raises InvalidError, UnavailableError."""
        if isolation not in self._drivers:
            if isolation not in KIND.names():
                known = ", ".join(KIND.names())
                raise InvalidError(f"no isolation named {isolation!r}, expected one of {known}")
            boxes: Boxes = KIND.load(isolation)(self.home)
            await boxes.open()
            self._drivers[isolation] = boxes
        return self._drivers[isolation]

    async def driver_of(self, box: str) -> Boxes:
        """The driver of a box. Raises NotFoundError."""
        return await self.driver(self._record(box)["isolation"])

    async def start(
        self,
        spec: BoxSpec,
        isolation: str,
        *,
        stdin: bool = False,
        size: tuple[int, int] = (24, 80),
        attached: bool = False,
        remove: bool = False,
    ) -> tuple[str, ...]:
        """Run a box under a shim of its own; notes on what could not be applied.

        Args:
            spec: the box.
            isolation: the driver's name.
            stdin: whether it has an input, without a terminal.
            size: rows and columns of its terminal.
            attached: whether it waits for `attach` before it starts, so that nothing is missed.
            remove: whether it is deleted when it has ended.

        Raises:
            ConflictError: its id is another box's.
            Error: as `Boxes.prepare`.
        """
        boxes = await self.driver(isolation)
        folder = self._folder(spec.id)
        if folder.exists():
            raise ConflictError(
                f"box {spec.id} is there already",
                hint=f"choose another name, or `bedstone box rm {spec.id}`",
            )
        launch = await boxes.prepare(spec)
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
            after = [sys.executable, "-m", "bedstone.boxes.remove", str(self.home), spec.id]
            starting = {"started": launch.started, "log": launch.log}
            record = {"isolation": isolation, "notes": launch.notes, **starting}
            self._write(folder / "box.json", record)
            self._write(
                folder / "shim.json",
                {
                    "argv": launch.argv,
                    **starting,
                    "env": dict(launch.env),
                    "tty": spec.tty,
                    "stdin": stdin,
                    "size": size,
                    "wait_for_client": attached,
                    "after": after if remove else [],
                },
            )
            await self._spawn(folder)
        except BaseException:
            await boxes.delete(spec.id)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return launch.notes

    async def attach(self, box: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the shim of a box; `shim` says what is spoken.

        Raises:
            ConflictError: it has ended.
        """
        self._record(box)
        folder = os.open(self._folder(box), os.O_PATH | os.O_DIRECTORY)
        try:
            # Through the descriptor, since the path of a socket may have 107 bytes only.
            return await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/attach")
        except OSError as error:
            raise ConflictError(f"box {box} does not run") from error
        finally:
            os.close(folder)

    def code(self, box: str) -> int | None:
        """How it ended; None if it has not."""
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads((self._folder(box) / "exit.json").read_text())["code"])
        return None

    async def wait(self, box: str) -> int:
        """Its exit status, once it has ended.

        Raises:
            UnavailableError: its shim was killed, and nobody knows.
        """
        self._record(box)
        while self._alive(box) and self.code(box) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        code = self.code(box)
        if code is None:
            raise UnavailableError(f"the shim of box {box} is gone, and no status is kept")
        return code

    async def started(self, box: str) -> bool:
        """Wait until its command runs, or has run; False if it ended and never did."""
        record = self._record(box)
        file = record["started"]
        boxes = await self.driver_of(box)

        async def there() -> bool:
            if file:
                return Path(file).exists()
            return any(b.state != "stopped" for b in await boxes.list() if b.spec.id == box)

        while not await there():
            if not self._folder(box).exists():
                return True  # it is removed at its end, which it has reached
            if self.code(box) is not None or not self._alive(box):
                return await there() or (not file and not read(record["log"]))
            await asyncio.sleep(0.01)
        return True

    async def gone(self, box: str, patience: float = 10.0) -> None:
        """Wait until a box that is removed at its end is away, for so many seconds at most."""
        deadline = asyncio.get_running_loop().time() + patience
        while self._folder(box).exists() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def stop(self, box: str, grace: float) -> int:
        """Ask it to end with SIGTERM, kill it after `grace` seconds; its exit status."""
        boxes = await self.driver_of(box)
        with contextlib.suppress(ConflictError):
            await boxes.signal(box, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait(box)
        except TimeoutError:
            with contextlib.suppress(ConflictError):
                await boxes.signal(box, signal.SIGKILL)
            return await self.wait(box)

    async def logs(self, box: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What it wrote, oldest first; with `follow` what it writes, until it ends."""
        self._record(box)
        folder = self._folder(box)
        with contextlib.suppress(FileNotFoundError):
            yield (folder / "output.1").read_bytes()
        with (folder / "output").open("rb") as file:
            while True:
                ended = self.code(box) is not None or not self._alive(box)
                while block := file.read(1 << 16):
                    yield block
                if not follow or ended:
                    return
                await asyncio.sleep(0.1)

    async def list(self) -> list[Listed]:
        """Every stand-alone box, sorted by id."""
        wanted: dict[str, list[str]] = {}
        for file in self.home.glob(".run/*/box.json"):
            with contextlib.suppress(OSError, ValueError):
                wanted.setdefault(json.loads(file.read_text())["isolation"], []).append(
                    file.parent.name
                )
        found = []
        for isolation, ids in wanted.items():
            boxes = await self.driver(isolation)
            found += [
                Listed(info, self.code(info.spec.id))
                for info in await boxes.list()
                if info.spec.id in ids
            ]
        return sorted(found, key=lambda listed: listed.info.spec.id)

    async def delete(self, box: str) -> None:
        """End it and forget it: box, shim, output. Raises NotFoundError."""
        boxes = await self.driver_of(box)
        await boxes.delete(box)
        pid = self._pid(box)
        if pid is not None and pid != os.getppid():
            # It ends by itself now; who deletes for it must not wait for it.
            deadline = asyncio.get_running_loop().time() + 5
            while self._alive(box) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                if self._alive(box):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(let_go, box)
        shutil.rmtree(self._folder(box), ignore_errors=True)

    async def _spawn(self, folder: Path) -> None:
        with (folder / "shim.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                shim.__file__,
                str(folder),
                "--detach",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await process.wait()
        text = ""
        for _ in range(int(_PATIENCE / 0.01)):
            if (folder / "pid").exists():
                return
            text = (folder / "shim.log").read_text(errors="replace").strip()
            if text:
                break
            await asyncio.sleep(0.01)
        raise UnavailableError(f"its shim did not start: {text.splitlines()[-1:] or 'no answer'}")

    def _folder(self, box: str) -> Path:
        return self.home / ".run" / check_id(box)

    def _record(self, box: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self._folder(box) / "box.json").read_text())
        except (OSError, ValueError) as error:
            raise NotFoundError(
                f"no box {box}", hint="`bedstone box ps` shows those that are there"
            ) from error
        return value

    def _pid(self, box: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder(box) / "pid").read_text())
        return None

    def _alive(self, box: str) -> bool:
        """Whether its shim runs: a process of that number, with that folder as an argument."""
        pid = self._pid(box)
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
            return pid is not None and str(self._folder(box)).encode() in text
        return False

    @staticmethod
    def _write(path: Path, value: object) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(value, file)
