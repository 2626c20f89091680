"""Remote-write: sends every finished second to the Prometheus-like systems that manifests name.

Rules:
- Nothing waits for it: it reads what is stored, at its own pace.
- Up to which second a target has acknowledged is on disk. After a restart, or once a target
  answers again, it goes on from there, as far back as `BEHIND` seconds; what is older is skipped,
  and counted.
- 429, 5xx and broken connections are tried again, later and later, as the target's `Retry-After`
  says if it does. Another 4xx is final, and what was refused is dropped, and counted. A 400 may be
  about one sample that the target has already: what was sent is cut into seconds first.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from bedstone import __version__
from bedstone.control.monitoring.reading import Reader
from bedstone.control.monitoring.remote_write import Body, Encoder
from bedstone.model.resources import App
from bedstone.server.transaction_counts import Reading
from bedstone.telemetry import names
from bedstone.telemetry.frames import Series

_log = logging.getLogger(__name__)

BATCH: Final = 5
"""Seconds that are sent at once, where the target keeps up; a series' labels are sent once."""
MOST: Final = 30
"""Seconds that are sent at once to a target that is behind."""
BEHIND: Final = 3600
"""Prometheus takes nothing that is much older than its newest sample."""
POLL: Final = 0.5
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
LONGEST_WAIT: Final = 300.0
"""Seconds that a target may ask for."""
TIMEOUT: Final = 30.0
_SOURCE: Final = "server"
_HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": f"bedstone/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where series are sent, and with which headers."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """What names it on disk and in metrics, where its URL may have a secret."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:12]


@dataclass(slots=True)
class Progress:
    """How far a target is.

    Attributes:
        position: the last second that it acknowledged.
        sent: samples that it took.
        dropped: samples that it refused for good.
        skipped: seconds that it was too far behind for.
        trouble: why it takes nothing at the moment.
    """

    position: int = 0
    sent: int = 0
    dropped: int = 0
    skipped: int = 0
    trouble: str = ""


class Positions:
    """The acknowledged seconds by target, in a file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, int]:
        """What is known; nothing if the file is not there or damaged."""
        try:
            found = json.loads(self._path.read_text())
            return {str(name): int(second) for name, second in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def write(self, positions: Mapping[str, int]) -> None:
        """Replace them. A lost write means that seconds are sent again."""
        temporary = self._path.with_suffix(".new")
        try:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(dict(positions)))
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("position of remote-write not written", extra={"reason": str(error)})


@dataclass
class RemoteWriter:
    """Sends to one target.

    Args:
        reader: of the series.
        target: where to.
        client: that sends.
        progress: how far it is; kept up to date.
        acknowledged: called with each second that the target has.
        sleep: waits so many seconds.
        chance: a number from 0 to 1.
        clock: seconds since the epoch.
    """

    reader: Reader
    target: Target
    client: httpx.AsyncClient
    progress: Progress
    acknowledged: Callable[[int], None] = lambda _: None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.time
    _encoder: Encoder = field(default_factory=Encoder)

    async def run(self) -> None:
        """Send what is finished, until cancelled."""
        while True:
            try:
                sent = await self.step()
            except Exception:  # noqa: BLE001 - the server goes on whatever happens here
                _log.exception("remote-write failed", extra={"target": self.target.digest})
                sent = False
                await self.sleep(LONGEST_PAUSE)
            if not sent:
                await self.sleep(POLL)

    async def step(self) -> bool:
        """Send some seconds, if there are enough.

        Returns:
            Whether there were.
        """
        # What began in a second has its zero in the one before: the newest is not settled yet.
        progress, last = self.progress, self.reader.last() - 1
        if not progress.position or progress.position > last:
            progress.position = max(0, last)  # begin with what comes; or the clock was set back
            return False
        if last - progress.position < BATCH:
            return False
        kept = last - BEHIND
        if progress.position < kept:
            progress.skipped += kept - progress.position
            _log.warning(
                "remote-write skips seconds",
                extra={"target": self.target.digest, "seconds": kept - progress.position},
            )
            progress.position = kept
        upto = min(last, progress.position + MOST)
        for body in await asyncio.to_thread(
            self._encoder.bodies, self.reader, progress.position, upto
        ):
            await self._send(body)
        progress.position = upto
        self.acknowledged(upto)
        return True

    async def _send(self, body: Body) -> None:
        """Send until it is taken, or refused for good."""
        status = await self._taken(body)
        if status == 400:
            # Perhaps for a sample that the target has already, from before a restart.
            for part in body.seconds():
                self._count(part, await self._taken(part))
        else:
            self._count(body, status)

    def _count(self, body: Body, status: int) -> None:
        if status < 300:
            self.progress.sent += body.samples
        else:
            self.progress.dropped += body.samples

    async def _taken(self, body: Body) -> int:
        """The final status; asks again for as long as there may be a better one."""
        pause = FIRST_PAUSE
        while True:
            wait = 0.0
            try:
                response = await self.client.post(
                    self.target.url,
                    content=body.content,
                    headers={**_HEADERS, **dict(self.target.headers)},
                )
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    self._say("")
                    return response.status_code
                reason = f"HTTP {response.status_code}"
                if response.is_client_error and response.status_code != 429:
                    self._say(f"{reason}: {response.text[:200].strip()}")
                    return response.status_code
                wait = _retry_after(response.headers.get("retry-after", ""), self.clock())
            self._say(reason)
            await self.sleep(min(wait, LONGEST_WAIT) or pause * (0.5 + self.chance() / 2))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _say(self, trouble: str) -> None:
        if trouble != self.progress.trouble:
            extra = {"target": self.target.digest, "reason": trouble}
            if trouble:
                _log.warning("remote-write not taken", extra=extra)
            else:
                _log.info("remote-write taken again", extra=extra)
        self.progress.trouble = trouble


def _retry_after(text: str, now: float) -> float:
    """Seconds to wait (RFC 9110 §10.2.3), of a number or a date; 0 if it says nothing."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0


class RemoteWriting:
    """Sends to all targets that are declared at the time.

    Args:
        reader: of the series.
        targets: those that are declared now.
        directory: where the positions are kept.
        sleep: waits so many seconds.
        client: makes what sends.
    """

    def __init__(
        self,
        reader: Reader,
        targets: Callable[[], set[Target]],
        directory: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        client: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            trust_env=False, timeout=TIMEOUT
        ),
    ) -> None:
        self._reader = reader
        self._targets = targets
        self._positions = Positions(directory / "remote-write.json")
        self._sleep = sleep
        self._client = client
        self.progress: dict[Target, Progress] = {}

    async def run(self) -> None:
        """Send, and follow what is declared, until cancelled."""
        known = await asyncio.to_thread(self._positions.read)
        tasks: dict[Target, asyncio.Task[None]] = {}
        async with self._client() as client, asyncio.TaskGroup() as group:
            while True:
                declared = self._targets()
                for target in tasks.keys() - declared:
                    tasks.pop(target).cancel()
                    self.progress.pop(target, None)
                for target in declared - tasks.keys():
                    progress = Progress(known.get(target.digest, 0))
                    self.progress[target] = progress
                    writer = RemoteWriter(
                        self._reader,
                        target,
                        client,
                        progress,
                        lambda _: self._keep(known),
                        self._sleep,
                    )
                    tasks[target] = group.create_task(writer.run())
                await self._sleep(1.0)

    def _keep(self, known: dict[str, int]) -> None:
        """Write the positions down; those of targets that are not declared now are kept, too."""
        for target, progress in self.progress.items():
            known[target.digest] = progress.position
        self._positions.write(known)


def declared(apps: Iterable[App]) -> set[Target]:
    """The targets that manifests name; one that several name is one."""
    found = set()
    for app in apps:
        for spec in app.spec.monitoring.remote_write if app.spec.monitoring else ():
            headers = dict(spec.headers)
            if spec.bearer:
                headers["Authorization"] = f"Bearer {spec.bearer}"
            found.add(Target(spec.url, tuple(sorted(headers.items()))))
    return found


class RemoteWriteCounts:
    """How far the targets are, as series of the server's own."""

    def __init__(self, writing: RemoteWriting, last: Callable[[], int]) -> None:
        self._writing = writing
        self._last = last

    async def read(self) -> Reading:
        """Look."""
        found: list[tuple[Series, float]] = []
        for target, progress in self._writing.progress.items():
            for state, count in (("sent", progress.sent), ("dropped", progress.dropped)):
                series = names.REMOTE_WRITE_SAMPLES.series(
                    _SOURCE, target=target.digest, state=state
                )
                found.append((series, float(count)))
            behind = max(0, self._last() - progress.position) if progress.position else 0
            series = names.REMOTE_WRITE_BEHIND.series(_SOURCE, target=target.digest)
            found.append((series, float(behind)))
        return Reading(tuple(found))
