"""Boxes without an app: each with a shim that parents it, found again by its id.

`HOME/.run/ID/` has what the shim keeps (`shim` says what), and `box.json` with the isolation. It is
made first and removed last, so that no box is without it, wherever a start was cut off. The box
itself is its driver's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bedstone.boxes import shim
from bedstone.boxes.egress import Rule
from bedstone.boxes.network import (
    Network,
    Port,
    make,
    make_namespace,
    path_of,
    remove_namespace,
)
from bedstone.boxes.roots import let_go
from bedstone.errors import (
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from bedstone.sandbox.box import BoxInfo, BoxSpec, Launch, check_id
from bedstone.sandbox.boxes import KIND, Boxes, Forks
from bedstone.sandbox.failing import read
from bedstone.sandbox.folders import Folders, write

_PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Started:
    """A box that was started.

    Attributes:
        spec: what it is, its network included.
        notes: in words, what could not be applied.
        network: what it has for one.
    """

    spec: BoxSpec
    notes: tuple[str, ...]
    network: Network | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A box of a listing.

    Attributes:
        id: the box's.
        isolation: its driver's name; empty if its start was cut off before that was written.
        info: what its driver says; None if it says nothing.
        spec: what it is; None if that is not known.
        code: its exit status, once it has ended.
        ports: what is published of it.
        problem: why its driver says nothing; empty if it does.
    """

    id: str
    isolation: str
    info: BoxInfo | None = None
    spec: BoxSpec | None = None
    code: int | None = None
    ports: tuple[Port, ...] = ()
    problem: str = ""

    @property
    def state(self) -> str:
        """That of its driver, or `unknown`."""
        return "unknown" if self.info is None else self.info.state


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
        """The driver of a box. Raises NotFoundError, UnavailableError."""
        return await self.driver(self._isolation(box))

    @contextlib.asynccontextmanager
    async def making(self, box: str, isolation: str) -> AsyncIterator[None]:
        """Take an id while its box is made; if that fails, everything of it is given back.

        Raises:
            ConflictError: it is another box's.
            InvalidError, UnavailableError: as `driver`.
        """
        await self.driver(isolation)
        folder = self._folder(box)
        if Folders(self.home, isolation).owner(box) is not None:
            raise _taken(box)
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise _taken(box) from error
        try:
            write(folder / "box.json", json.dumps({"isolation": isolation}))
            yield
        except BaseException:
            await self.delete(box)
            raise

    async def start(
        self,
        spec: BoxSpec,
        isolation: str,
        *,
        stdin: bool = False,
        size: tuple[int, int] = (24, 80),
        attached: bool = False,
        remove: bool = False,
        ports: Sequence[Port] = (),
        egress: Sequence[Rule] = (),
    ) -> Started:
        """Run a box under a shim of its own, within `making`.

        Args:
            spec: the box.
            isolation: the driver's name.
            stdin: whether it has an input, without a terminal.
            size: rows and columns of its terminal.
            attached: whether it waits for `attach` before it starts, so that nothing is missed.
            remove: whether it is deleted when it has ended.
            ports: what is published of it.
            egress: what it may reach.

        Raises:
            UnavailableError: a port is taken.
            Error: as `Boxes.link` and `Boxes.prepare`.
        """
        boxes = await self.driver(isolation)
        network = None
        if ports or egress:
            network = await self._network(boxes, spec.id, ports, egress)
            spec = replace(spec, netns=network.netns, env={**network.env, **spec.env})
        try:
            launch = await boxes.prepare(spec)
            return await self._run(
                isolation,
                spec,
                launch,
                network,
                remove=remove,
                wait_for_client=attached,
                stdin=stdin,
                size=size,
            )
        finally:
            if network is not None:
                network.close()

    async def fork_many(
        self, source: Started, isolation: str, copies: Sequence[str]
    ) -> list[Started]:
        """Copies of a running box, each under a shim of its own, each within `making`.

        A copy that is to have a network has one of its own: it reaches what the source may, and the
        same ports of it are published, each at any free port.

        Raises:
            UnavailableError: the driver cannot copy boxes.
            Error: as `Forks.fork_many`.
        """
        boxes = await self.driver(isolation)
        if not isinstance(boxes, Forks):
            able = [name for name in KIND.names() if issubclass(KIND.load(name), Forks)]
            raise UnavailableError(
                f"{isolation} boxes cannot be forked", hint=f"choose isolation {' or '.join(able)}"
            )
        async with contextlib.AsyncExitStack() as stack:
            specs, networks = [], []
            for box in copies:
                network = None
                if (model := source.network) is not None:
                    ports = [replace(port, port=0) for port in model.ports]
                    network = await self._network(boxes, box, ports, model.rules, model.proxy_port)
                    stack.callback(network.close)
                netns = None if network is None else network.netns
                specs.append(replace(source.spec, id=box, netns=netns, created_at=time.time()))
                networks.append(network)
            launches = await boxes.fork_many(source.spec.id, specs)
            return await asyncio.gather(
                *(
                    self._run(isolation, spec, launch, network)
                    for spec, launch, network in zip(specs, launches, networks, strict=True)
                )
            )

    async def _network(
        self,
        boxes: Boxes,
        box: str,
        ports: Sequence[Port],
        rules: Sequence[Rule],
        proxy_port: int = 0,
    ) -> Network:
        path = path_of(self.home, box)
        await asyncio.to_thread(make_namespace, path)
        link = await boxes.link(str(path))
        return await asyncio.to_thread(make, path, link, ports, rules, proxy_port)

    async def _run(
        self,
        isolation: str,
        spec: BoxSpec,
        launch: Launch,
        network: Network | None,
        *,
        remove: bool = False,
        wait_for_client: bool = False,
        stdin: bool = False,
        size: tuple[int, int] = (24, 80),
    ) -> Started:
        folder = self._folder(spec.id)
        starting = {"started": launch.started, "log": launch.log}
        after = [sys.executable, "-m", "bedstone.boxes.remove", str(self.home), spec.id]
        config = {
            "argv": launch.argv,
            "env": dict(launch.env),
            "tty": spec.tty,
            "stdin": stdin,
            "size": size,
            "wait_for_client": wait_for_client,
            "after": after if remove else [],
            "relay": network.command("\r\n" if spec.tty else "\n") if network else [],
            "descriptors": network.descriptors if network else [],
            **starting,
        }
        write(folder / "shim.json", json.dumps(config))
        record = {
            "isolation": isolation,
            "notes": launch.notes,
            "ports": [asdict(port) for port in network.ports] if network else [],
            **starting,
        }
        write(folder / "box.json", json.dumps(record))
        await self._spawn(folder, network.descriptors if network else ())
        return Started(spec, launch.notes, network)

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

    def ports(self, box: str) -> tuple[Port, ...]:
        """What is published of it, with the real numbers."""
        with contextlib.suppress(NotFoundError):
            return tuple(Port(**port) for port in self._record(box).get("ports", ()))
        return ()

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
        file = record.get("started", "")

        async def there() -> bool:
            return Path(file).exists() if file else await self.runs(box)

        while not await there():
            if not self._folder(box).exists():
                return True  # it is removed at its end, which it has reached
            if self.code(box) is not None or not self._alive(box):
                return await there() or (not file and not read(record.get("log", "")))
            await asyncio.sleep(0.01)
        return True

    async def runs(self, box: str) -> bool:
        """Whether anything of it runs, paused or not. Raises NotFoundError, UnavailableError."""
        if not self._isolation(box):
            return False
        infos = await (await self.driver_of(box)).list()
        return any(info.state != "stopped" for info in infos if info.spec.id == box)

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
        """Every stand-alone box, sorted by id; also those that no driver can say anything of."""
        wanted: dict[str, list[str]] = {}
        for folder in self.home.glob(".run/*/"):
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                wanted.setdefault(self._isolation(folder.name), []).append(folder.name)
        found = []
        for isolation, ids in wanted.items():
            problem = "its start was cut off"
            told = {}
            try:
                if isolation:
                    boxes = await self.driver(isolation)
                    told = {info.spec.id: info for info in await boxes.list()}
            except Error as error:
                problem = error.message
            found += [self._listed(box, isolation, told.get(box), problem) for box in ids]
        return sorted(found, key=lambda listed: listed.id)

    def _listed(self, box: str, isolation: str, info: BoxInfo | None, problem: str) -> Listed:
        code = self.code(box)
        if info is not None:
            return Listed(box, isolation, info, info.spec, code, self.ports(box))
        spec = None
        with contextlib.suppress(Error):
            spec = Folders(self.home, isolation).spec(box)
        return Listed(box, isolation, None, spec, code, self.ports(box), problem)

    async def delete(self, box: str) -> None:
        """End it and forget it: box, shim, output. Raises NotFoundError, UnavailableError."""
        if isolation := self._isolation(box):
            await (await self.driver(isolation)).delete(box)
        pid = self._pid(box)
        if pid is not None and pid != os.getppid():
            # It ends by itself now; who deletes for it must not wait for it.
            deadline = asyncio.get_running_loop().time() + 5
            while self._alive(box) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                if self._alive(box):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(remove_namespace, self.home, box)
        await asyncio.to_thread(let_go, box)
        shutil.rmtree(self._folder(box), ignore_errors=True)

    async def _spawn(self, folder: Path, descriptors: Sequence[int]) -> None:
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
                pass_fds=descriptors,
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
            raise _nothing(box) from error
        return value

    def _isolation(self, box: str) -> str:
        """The name of its driver; empty if a start was cut off before there was any."""
        with contextlib.suppress(NotFoundError, KeyError):
            return str(self._record(box)["isolation"])
        if isolation := Folders(self.home, "").owner(box):
            return isolation
        if self._folder(box).is_dir():
            return ""
        raise _nothing(box)

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


def _nothing(box: str) -> NotFoundError:
    return NotFoundError(f"no box {box}", hint="`bedstone box ps` shows those that are there")


def _taken(box: str) -> ConflictError:
    return ConflictError(
        f"box {box} is there already",
        hint=f"choose another name, or `bedstone box rm {box}`",
    )
