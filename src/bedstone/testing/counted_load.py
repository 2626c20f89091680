"""A load that knows exactly what it sent, and the series of a run that has ended, to compare with.

The load speaks HTTP/1.1 itself, so that it knows of every request whether it was sent, when its
answer began and with which status. A request counts as sent once a proxy can have read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.model.monitoring import Tick
from bedstone.processes.state import run_directory

HOST = "127.0.0.1"


@dataclass
class Sent:
    """What was sent.

    Attributes:
        answers: for each request, when its answer began, or it ended without one (seconds since
            the epoch), and the class of the status; `none` for no answer.
    """

    answers: list[tuple[float, str]] = field(default_factory=list)

    @property
    def codes(self) -> Counter[str]:
        """How many by class of the status."""
        return Counter(code for _, code in self.answers)

    def until(self, moment: float) -> int:
        """How many answers had begun by a moment."""
        return sum(at <= moment for at, _ in self.answers)


async def send(
    port: int, paths: Sequence[str], *, connections: int = 8, left: str = "", host: str = "x"
) -> Sent:
    """Send one request for each path, over a few connections, each after the one before.

    Args:
        port: of the gateway, on loopback.
        paths: in this order, by whichever connection is free.
        connections: how many.
        left: requests whose path begins so are left before their answer.
        host: of the requests.
    """
    sent = Sent()
    todo = iter(paths)

    async def work() -> None:
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for path in todo:
            try:
                if stream is None:
                    stream = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(0.05)  # it was not sent: nobody was there
                continue
            reader, writer = stream
            code = "none"
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                await writer.drain()
                if left and path.startswith(left):
                    await asyncio.sleep(0.1)  # it has arrived
                else:
                    code = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                pass
            sent.answers.append((time.time(), code))
            if code == "none":
                writer.close()
                stream = None
        if stream is not None:
            stream[1].close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return sent


async def _answer(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "transfer-encoding: chunked" in head:
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        for line in head.split("\r\n"):
            if line.startswith("content-length:"):
                await reader.readexactly(int(line.partition(":")[2]))
    return f"{status // 100}xx"


class Collected:
    """The series of a run that has ended, by the second.

    Args:
        state: the run's state directory.
    """

    def __init__(self, state: Path) -> None:
        self._store = SeriesStore(state / "telemetry" / "metrics.sqlite")

    def __enter__(self) -> Self:
        self._store.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()

    def counted(self, name: str, start: int, end: int, **labels: str) -> Counter[str]:
        """What a counter rose by after second `start`, up to `end`, by its `code`, `kind` or event.

        The two seconds must be complete, or what stands in them need not be all.
        """
        matchers = [Matcher("__name__", "=", name)]
        matchers += [Matcher(label, "=", value) for label, value in labels.items()]
        found = self._store.select(matchers, start, end, 1)
        rises: Counter[str] = Counter()
        for pairs, row in zip(found.labels, found.values.tolist(), strict=True):
            known = [value for value in row if value == value]  # noqa: PLR0124 - no value is NaN
            which = dict(pairs)
            key = which.get("code") or which.get("kind") or which.get("event") or ""
            if known:
                rises[key] += round(known[-1] - known[0])
        return +rises

    def total(self, name: str, start: int, end: int, **labels: str) -> int:
        """The same, of all codes."""
        return self.counted(name, start, end, **labels).total()

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that were not complete."""
        return self._store.incomplete(start, end)

    def complete_runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """The spans of complete seconds, first and last of each."""
        broken = self.incomplete(start, end).keys()
        good = [second for second in range(start, end + 1) if second not in broken]
        runs = itertools.groupby(enumerate(good), key=lambda item: item[1] - item[0])
        spans = [[second for _, second in run] for _, run in runs]
        return [(span[0], span[-1]) for span in spans]


def quiet(state: Path, patience: float = 60.0) -> int:
    """Wait until two whole seconds with nothing in them have passed and are complete; the last.

    Args:
        state: of the run, whose server is asked; it may be away for a while.
        patience: seconds to wait.
    """
    begun = int(time.time()) + 1
    deadline = time.monotonic() + patience
    transport = httpx.HTTPTransport(uds=str(run_directory(state) / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://server", timeout=2) as client:
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(httpx.HTTPError),
                client.stream("GET", "/v1/ticks") as answer,
            ):
                run = 0
                for line in answer.iter_lines():
                    tick = Tick.model_validate_json(line)
                    run = run + 1 if tick.complete and tick.second >= begun else 0
                    if run == 2:
                        return tick.second
            time.sleep(0.1)
    raise AssertionError(f"no two complete seconds within {patience:g} s")
