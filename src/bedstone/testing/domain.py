"""A whole installation for tests and benchmarks: an app run by the real command, on loopback.

```python
domain = Domain.make(manifest="app: echo ...")
try:
    domain.up()
    ...
finally:
    domain.down()
```

Rules: ports are free ones outside the range of outgoing connections; only processes of the domain's
own run are ever signalled, by id; after `down` nothing of the run may be left, or it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bedstone.processes.client import SupervisorClient
from bedstone.processes.spec import ProcessInfo
from bedstone.processes.state import run_directory, run_marker

COMMAND = [str(Path(sys.executable).with_name("bedstone"))]


@dataclass
class Outcome:
    """What a steady load saw: one entry an answer, in order."""

    answers: list[tuple[float, int | str]] = field(default_factory=list)

    @property
    def counts(self) -> Counter[int | str]:
        """How often each status, or kind of failure, was seen."""
        return Counter(answer for _, answer in self.answers)

    @property
    def failures(self) -> list[tuple[float, int | str]]:
        """Whatever was not 2xx."""
        return [(t, a) for t, a in self.answers if not (isinstance(a, int) and 200 <= a < 300)]

    def longest_gap(self) -> float:
        """The longest time between two good answers, in seconds."""
        good = [t for t, a in self.answers if isinstance(a, int) and 200 <= a < 300]
        return max((b - a for a, b in itertools.pairwise(good)), default=float("inf"))


class Load:
    """Sends one kind of request again and again from a few threads, until stopped."""

    def __init__(self, send: Callable[[httpx.Client], int], threads: int = 3) -> None:
        self.outcome = Outcome()
        self._send = send
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Outcome:
        for thread in self._threads:
            thread.start()
        return self.outcome

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            while not self._stop.is_set():
                answer: int | str
                try:
                    answer = self._send(client)
                except httpx.HTTPError as error:
                    answer = type(error).__name__
                with self._lock:
                    self.outcome.answers.append((time.monotonic(), answer))
                time.sleep(0.01)


class Domain:
    """An app in a directory of its own."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.state = directory / ".bedstone"

    @classmethod
    def make(cls, source: Path | None = None, manifest: str = "") -> Domain:
        """A domain in a new directory: a copy of `source`, and a manifest if one is given."""
        # Below a folder that others may pass through, as an instance's own user must.
        directory = Path(tempfile.mkdtemp(prefix="bedstone-test-"))
        directory.chmod(0o755)
        if source:
            ignore = shutil.ignore_patterns(".bedstone", "__pycache__")
            shutil.copytree(source, directory, dirs_exist_ok=True, ignore=ignore)
        if manifest:
            (directory / "bedstone.yaml").write_text(manifest)
        return cls(directory, free_port())

    def discard(self) -> None:
        """End whatever is left of the run, and delete the directory."""
        for pid in self.everything():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(
        self, *arguments: str, timeout: float = 90, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command in the app's directory; its output is captured."""
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )

    def ok(self, *arguments: str, timeout: float = 90) -> str:
        """Run a command that must succeed; its standard output."""
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def up(self, *arguments: str) -> str:
        """Bring the app up and wait until it is ready."""
        return self.ok(
            "up", "--detach", "--wait", "--gateway-port", str(self.port), *arguments, timeout=120
        )

    def parts(self) -> list[dict[str, Any]]:
        """The parts of the app, as `ps -o json` gives them."""
        status = json.loads(self.ok("ps", "-o", "json"))["status"]
        found: list[dict[str, Any]] = status["apps"][0]["parts"]
        return found

    def pids(self) -> dict[str, int]:
        """Process id by name of what the supervisor runs."""

        async def listed() -> list[ProcessInfo]:
            async with SupervisorClient(run_directory(self.state) / "supervisor.sock") as client:
                return await client.list()

        return {p.name: p.pid for p in asyncio.run(listed()) if p.state == "running" and p.pid}

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Signal the one process of this run whose name starts so; its id."""
        found = {n: pid for n, pid in self.pids().items() if n == name or n.startswith(name)}
        assert found, f"nothing named {name}: {self.pids()}"
        pid = found[min(found)]
        os.kill(pid, number)
        return pid

    def fetches_given_up(self) -> dict[str, int]:
        """What the proxy asked the control plane for, and then did without, by its name."""
        sockets = httpx.HTTPTransport(uds=str(run_directory(self.state) / "envoy-admin.sock"))
        with httpx.Client(transport=sockets) as client:
            text = client.get("http://envoy/stats?filter=init_fetch_timeout").text
        counts = (line.rpartition(": ") for line in text.splitlines())
        return {name: int(count) for name, _, count in counts if count != "0"}

    def supervisor(self) -> int:
        """The supervisor's process id."""
        pid: int = json.loads((self.state / "run.json").read_text())["pid"]
        return pid

    def everything(self) -> list[int]:
        """Every living process that carries this run's mark."""
        if not self.state.exists():
            return []
        mark = run_marker(self.state).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    if any(item.startswith(mark) for item in environment):
                        found.append(int(entry.name))
        return found

    def logs(self) -> str:
        """The ends of the logs, for a failing assertion."""
        lines = []
        for file in sorted((self.state / "logs").rglob("*.log")):
            tail = file.read_text(errors="replace").splitlines()[-8:]
            lines += [f"== {file.relative_to(self.state)}", *(line[:400] for line in tail)]
        return "\n".join(lines)

    def wait(self, condition: Callable[[], bool], timeout: float = 20, what: str = "") -> float:
        """Wait until a condition holds; how long it took, in seconds."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < timeout, f"{what or condition}\n{self.logs()}"
            time.sleep(0.02)
        return time.monotonic() - start

    def down(self) -> None:
        """Take the app down; nothing of it may be left."""
        self.ok("down")
        left = self.everything()
        assert left == [], [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]


def free_port() -> int:
    """A port of loopback that is free, outside the range of outgoing connections."""
    while True:
        port = random.randint(15_000, 19_999)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
