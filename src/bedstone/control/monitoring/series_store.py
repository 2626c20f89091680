"""The store of series: what is collected goes in by the second, and is read at three resolutions.

Owns the ring of the last seconds, the state of all counters (`totals`), and the file.

- A second is taken in by `ingest` and `finish`, in memory: neither waits for a disk.
- About every `flush` seconds, the seconds since the last time go to the file as a *part*, with the
  state as of the last of them. A kill loses what came after, at most; those seconds are incomplete.
- Whole minutes are *sealed* a minute after they ended: written as blocks and roll-ups, in place of
  the parts. They wait, since a counter may begin right after them: see `rollups`.
- Where the disk refuses, everything goes on in memory, and it is tried again. Seconds that leave
  the ring before the disk has them are incomplete.

One thread collects; one thread of the store's writes; any thread reads. What they share is guarded
by one lock, which is held for copies in memory only.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np

from bedstone.control.monitoring.blocks import Points
from bedstone.control.monitoring.catalogue import Catalogue
from bedstone.control.monitoring.gaps import Gaps, Run
from bedstone.control.monitoring.reading import RESOLUTIONS, Matcher, Selection, SeriesKey
from bedstone.control.monitoring.ring import Ring
from bedstone.control.monitoring.rows import dump_bytes, load_bytes
from bedstone.control.monitoring.sealing import Absence, Snapshot, parts, seal
from bedstone.control.monitoring.selecting import choose, read_file, read_ring
from bedstone.control.monitoring.series_batch import (
    Batch,
    DamagedError,
    Draft,
    Loaded,
    Retention,
    Stats,
)
from bedstone.control.monitoring.series_file import SeriesFile
from bedstone.control.monitoring.totals import Totals
from bedstone.errors import InvalidError, UnavailableError
from bedstone.telemetry.frames import Frame

_log = logging.getLogger(__name__)

RING: Final = 360
FLUSH: Final = 10
CAP: Final = 50_000
CACHE: Final = 64 << 20
_BLOCK: Final = 120
_MINUTE: Final = 60
_KNOWN: Final = 4  # series that are known, those without a row with them, for each of the cap
_BEFORE: Final = 86_400  # seconds before the first that are named as incomplete


class SeriesStore:
    """A `Reader` and `Writer` of series.

    Args:
        path: of the file; its directory exists.
        ring: seconds in memory; at least five minutes.
        flush: seconds between writes.
        retention: how long points are kept on disk.
        cap: at most so many series in memory.
        cache: bytes of decoded blocks to keep.
        clock: seconds since the epoch; asked once, when the store is opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        ring: int = RING,
        flush: int = FLUSH,
        retention: Retention | None = None,
        cap: int = CAP,
        cache: int = CACHE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if ring < 5 * _MINUTE or not 0 < flush <= _MINUTE:
            raise InvalidError(
                f"got a ring of {ring} s and a flush of {flush} s, "
                f"expected at least {5 * _MINUTE} s, and at most {_MINUTE} s"
            )
        self._retention = retention or Retention()
        self._file = SeriesFile(path, self._retention, cache)
        self._clock = clock
        self._interval = flush
        self._cap = cap
        self._seconds = ring
        self._lock = threading.RLock()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._trouble: str | None = None
        self._renewing = False
        self._begin()

    def _begin(self) -> None:
        self._catalogue = Catalogue()
        self._totals = Totals(self._catalogue, self._cap)
        self._ring = Ring(self._seconds)
        self._gaps = Gaps()
        self._first = 0
        self._held = 0  # the ring has every second from here on that is kept at all
        self._flushed = 0
        self._tried = 0  # the second in which it was last begun to write
        self._sealed = 0
        self._written_metrics = 0
        self._newest = 0
        self._forgotten: list[int] = []

    # Opening and closing.

    def open(self) -> None:
        """Own the file and go on from what is in it.

        Raises:
            UnavailableError: another process has the file, or the disk refuses.
        """
        loaded = self._file.open()
        self._begin()
        try:
            self._restore(loaded)
        except (InvalidError, KeyError, ValueError, TypeError, IndexError) as error:
            self._file.set_aside(f"its state is not understood: {error}")
            self._begin()
            self._file.open()
        self._thread = ThreadPoolExecutor(1, "bedstone-series")
        last = self._ring.last
        if last and self._clock() - last > _BLOCK:
            # What is in the ring leaves it with the next second: it must be on disk before.
            self._try_write(self._draft(upto=_ceil(last, _MINUTE)))

    def close(self) -> None:
        """Write what is not on disk yet, and give the file up."""
        if self._thread is not None:
            self.flush()
            self._thread.shutdown(wait=True)
            self._thread = None
        self._file.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _restore(self, loaded: Loaded) -> None:
        if "state" not in loaded.meta:
            return
        state = json.loads(loaded.meta["state"])
        catalogue, totals = self._catalogue, self._totals
        catalogue.metrics = dict(loaded.metrics)
        for number, name, labels, kind, first, last, offset, raw, source, live in loaded.series:
            pairs = tuple((key, value) for key, value in json.loads(labels))
            entry = catalogue.add(
                name, pairs, "counter" if kind == "counter" else "gauge", number=number
            )
            entry.first, entry.last, entry.offset, entry.raw = first, last, offset, raw
            entry.source, entry.live = source, bool(live)
        catalogue.next_id = max(catalogue.next_id, state["next_id"])
        totals.rows.restore(load_bytes(loaded.meta["rows"]))
        for row, number in enumerate(totals.rows.ids.tolist()):
            catalogue[number].row = row
        totals.restore(state["totals"], state["last"])
        self._ring.grow(len(totals.rows))
        self._ring.advance(state["last"])
        for part in loaded.parts:
            self._load_part(part)
        for run in loaded.runs:
            self._gaps.add(run.first, run.last, run.missing)
        self._gaps.changed = None
        self._first = state["first"]
        self._flushed, self._sealed = state["last"], state["sealed"]
        self._held = max(self._sealed, self._ring.last - self._seconds) + 1
        self._written_metrics = len(catalogue.metrics)
        self._newest = catalogue.next_id

    def _load_part(self, part: Points) -> None:
        known = [self._catalogue.get(number) for number in part.ids.tolist()]
        place = [at for at, entry in enumerate(known) if entry is not None and entry.row >= 0]
        rows = np.array([entry.row for entry in known if entry and entry.row >= 0], np.int64)
        for column in range(part.values.shape[1]):
            self._ring.fill(part.start + 1 + column, rows, part.values[place, column])

    # Collecting.

    def ingest(self, node: str, frame: Frame) -> bool:
        """Take a node's frame (see `reading.Writer`)."""
        with self._lock:
            return self._totals.put(node, frame)

    def finish(self, second: int, missing: Mapping[str, str]) -> None:
        """End a second (see `reading.Writer`)."""
        with self._lock:
            last = self._ring.last
            if second <= last:
                return
            if last and second - last > _BLOCK:
                self._submit(self._draft(upto=_ceil(last, _MINUTE)))
                self._sealed = max(self._sealed, _floor(second - 1, _MINUTE) - _MINUTE)
            if not last:
                self._first = self._held = second
                self._sealed = _floor(second - 1, _MINUTE) - _MINUTE
            elif second > last + 1:
                self._gaps.add(last + 1, second - 1, {"server": "the server was away"})
            if second <= self._sealed:  # the clock was set back after it was opened
                self._sealed = _floor(second - 1, _MINUTE)
                self._held = min(self._held, second)
            finished = self._totals.finish(second, missing)
            self._ring.grow(len(finished.values))
            self._ring.advance(second)
            self._ring.write(second, finished.values)
            self._ring.fill(second - 1, finished.begun, finished.carries)
            self._gaps.add(second, second, finished.missing)
            self._lose(second - self._seconds)
            if second - max(self._flushed, self._tried) >= self._interval:
                self._tried = second
                if not self._is_writing():
                    self._submit(None)

    def _lose(self, left: int) -> None:
        """Seconds up to one have left the ring; those that are not in a block are lost."""
        if left > self._sealed and self._held <= left:
            begin = max(self._sealed + 1, self._first, self._held)
            self._gaps.add(begin, left, {"server": self._trouble or "it was not written in time"})
        self._held = max(self._held, left + 1)

    # Writing.

    def flush(self) -> None:
        """Wait until every second that was finished is on disk, or the disk refused."""
        pending = self._pending
        if pending is not None:
            pending.result()
        with self._lock:
            unwritten = self._ring.last > self._flushed
        if unwritten and self._thread is not None:
            self._thread.submit(self._try_write, None).result()

    def _is_writing(self) -> bool:
        return self._pending is not None and not self._pending.done()

    def _submit(self, draft: Draft | None) -> None:
        if self._thread is not None:
            self._pending = self._thread.submit(self._try_write, draft)

    # Below: on the writer's thread.

    def _try_write(self, draft: Draft | None) -> None:
        """Write a draft of before, or what there is now; whatever fails, it is only said."""
        try:
            self._write_or_renew(draft or self._draft())
            return
        except (UnavailableError, DamagedError, OSError) as error:
            reason = str(error)
        except Exception:  # noqa: BLE001 - collecting goes on whatever happens here
            _log.exception("series not written")
            reason = "an internal error"
        with self._lock:
            if self._trouble is None:
                _log.error("series not written", extra={"reason": reason})
            self._trouble = reason
            if draft is not None:  # nobody will write it again
                seconds = draft.snapshot
                self._gaps.add(seconds.begin, seconds.last, {"server": reason})

    def _write_or_renew(self, draft: Draft) -> None:
        if self._renewing:
            draft = self._renew()
        try:
            self._write(draft)
        except DamagedError as error:
            self._renewing = True
            self._file.set_aside(str(error))
            self._write(self._renew())

    def _renew(self) -> Draft:
        """Begin a new file; a draft of everything that is in memory."""
        self._file.open()
        with self._lock:
            self._renewing = False
            self._newest = self._written_metrics = self._flushed = 0
            self._totals.unwritten = [it for it in self._catalogue if it.row < 0]
            # What is in the ring is written again; what was before is gone.
            self._sealed = _floor(self._held - 1, _MINUTE)
            self._gaps.add(self._first, self._held - 1, {"server": "the file was damaged"})
            self._gaps.touch(0)
            return self._draft()

    def _write(self, draft: Draft) -> None:
        snapshot = draft.snapshot
        sealing = snapshot.upto > snapshot.sealed
        if snapshot.last <= self._flushed and not sealing:
            return
        batch = Batch(
            meta={"state": draft.state, "rows": dump_bytes(draft.rows)},
            metrics=draft.metrics,
            series=[
                (entry.id, entry.name, json.dumps(entry.labels), entry.kind) for entry in draft.new
            ],
            parked=draft.parked,
            forgotten=draft.forgotten,
            points=[*parts(snapshot), *seal(snapshot)],
            sealed=snapshot.upto,
            runs=draft.runs,
            runs_from=draft.runs_from,
            last=snapshot.last,
            retain=sealing,
        )
        try:
            self._file.write(batch)
        except (UnavailableError, DamagedError):
            with self._lock:
                if draft.runs_from is not None:
                    self._gaps.touch(draft.runs_from)
            raise
        with self._lock:
            if self._trouble is not None:
                _log.info("series written again", extra={"second": snapshot.last})
                self._trouble = None
            self._flushed = max(self._flushed, snapshot.last)
            self._written_metrics += len(draft.metrics)
            self._newest = max(self._newest, draft.next_id)
            del self._totals.unwritten[: len(draft.parked)]
            del self._forgotten[: len(draft.forgotten)]
            if sealing:
                self._sealed = max(self._sealed, snapshot.upto)
                self._tidy()

    def _tidy(self) -> None:
        """Let go of rows and series that nobody has seen for long."""
        last = self._ring.last
        self._totals.park(min(last - self._seconds, self._sealed) + 1)
        self._totals.prune(last - 600)
        longest = max(self._retention.seconds.values())
        self._gaps.forget(last - longest)
        idle = [entry for entry in self._catalogue if entry.row < 0]
        old = [entry for entry in idle if entry.last < last - longest]
        surplus = len(self._catalogue) - len(old) - self._cap * _KNOWN
        if surplus > 0:
            idle.sort(key=lambda entry: entry.last)
            old = idle[: len(old) + surplus]
            _log.warning("old series forgotten", extra={"series": surplus, "reason": "too many"})
        # Forgetting costs as much as all that remain: not for a few.
        if len(old) > len(self._catalogue) // 50:
            self._totals.forget(old)
            self._catalogue.forget(old)
            self._forgotten += [entry.id for entry in old]

    def _draft(self, upto: int | None = None) -> Draft:
        """A copy of what is to be written; `upto` seals more than is due. From any thread."""
        with self._lock:
            last, sealed, totals = self._ring.last, self._sealed, self._totals
            if upto is None:
                upto = max(sealed, _floor(last - _MINUTE, _BLOCK))
            begin = max(self._held, self._first, sealed + 1 if upto > sealed else self._flushed)
            rows = totals.rows.used()
            changed, self._gaps.changed = self._gaps.changed, None
            metrics = list(self._catalogue.metrics.items())[self._written_metrics :]
            return Draft(
                snapshot=Snapshot(
                    last=last,
                    begin=begin,
                    part_from=max(begin, self._flushed),
                    sealed=sealed,
                    upto=upto,
                    values=self._ring.copy(begin, last)[:, rows],
                    columns=totals.columns(rows),
                    absence=self._absence(begin - _MINUTE, last),
                ),
                rows=totals.rows.dump(),
                metrics=dict(metrics),
                new=[entry for entry in self._catalogue if entry.id >= self._newest],
                next_id=self._catalogue.next_id,
                parked=[
                    (
                        *(entry.first, entry.last, entry.offset, entry.raw),
                        *(entry.source, int(entry.live), entry.id),
                    )
                    for entry in totals.unwritten
                ],
                forgotten=list(self._forgotten),
                runs=[] if changed is None else [it for it in self._gaps if it.last >= changed],
                runs_from=changed,
                state=json.dumps(
                    {
                        "last": last,
                        "first": self._first,
                        "sealed": upto,
                        "next_id": self._catalogue.next_id,
                        "totals": totals.dump(),
                    }
                ).encode(),
            )

    def _absence(self, start: int, end: int) -> Absence:
        return Absence(
            {
                second: missing
                for second in range(_floor(start, 10), end + 1, 10)
                if (missing := self._gaps.at(second))
            },
            [(it.node, it.name) if it else None for it in self._totals.sources],
        )

    # Reading.

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        """The series that match, on one grid (see `reading.Reader`)."""
        if resolution not in RESOLUTIONS:
            raise InvalidError(f"got resolution {resolution}, expected one of {RESOLUTIONS}")
        times = np.arange(_ceil(start, resolution), end + 1, resolution, dtype=np.int64)
        with self._lock:
            chosen = choose(self._catalogue, self._totals.rows, matchers, start - resolution, end)
            values = np.full((len(chosen.entries), len(times)), np.nan)
            begin = self._held
            if resolution > 1:
                begin = max(self._sealed, _ceil(self._ring.last - self._seconds, _MINUTE)) + 1
            absence = self._absence(begin - _MINUTE, self._ring.last)
            read_ring(self._ring, chosen, times, values, resolution, aggregate, begin, absence)
        read_file(self._file, chosen, times[times < begin], values, resolution, aggregate)
        some = np.flatnonzero(~np.isnan(values).all(axis=1))
        found = [chosen.entries[at] for at in some.tolist()]
        return Selection(
            names=tuple([entry.name for entry in found]),
            labels=tuple([entry.labels for entry in found]),
            kinds=tuple([entry.kind for entry in found]),
            times=times,
            values=values if len(some) == len(values) else values[some],
            resolution=resolution,
        )

    def series(self, matchers: Sequence[Matcher], start: int, end: int) -> list[SeriesKey]:
        """The series that match and have a value in the span (see `reading.Reader`)."""
        with self._lock:
            return choose(self._catalogue, self._totals.rows, matchers, start, end).keys

    def resolution(self, start: int, step: int) -> int:
        """The coarsest that divides the step, or the finest that is kept if that is coarser."""
        floors = self._file.floors
        kept = next((it for it in RESOLUTIONS if start > floors[it]), RESOLUTIONS[-1])
        return max([kept, *(it for it in RESOLUTIONS if step and step % it == 0)])

    def last(self) -> int:
        """The last second that was finished; 0 before the first."""
        return self._ring.last

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that are not complete (see `reading.Reader`).

        Of the time before the first second, a day is named. Equal seconds share what they miss.
        """
        found: dict[int, dict[str, str]] = {}
        for run in self.runs(start, end):
            missing = dict(run.missing)
            found |= dict.fromkeys(range(run.first, run.last + 1), missing)
        return found

    def runs(self, start: int, end: int) -> list[Run]:
        """The seconds that are not complete, as runs of seconds that miss the same."""
        with self._lock:
            found = self._gaps.within(start, min(end, self._ring.last))
            begin = max(start, self._first - _BEFORE)
            if self._first and begin < self._first:
                before = {"server": "the monitoring had not begun"}
                found.insert(0, Run(begin, min(end, self._first - 1), before))
        return found

    def stats(self) -> Stats:
        """What the store says of itself."""
        with self._lock:
            return Stats(
                series=self._totals.rows.count,
                known=len(self._catalogue),
                dropped=dict(self._totals.dropped),
                memory=self._ring.nbytes + self._totals.rows.nbytes,
                disk=self._file.size(),
                flushed=self._flushed,
                unwritten=self._ring.last - max(self._flushed, self._first - 1),
                trouble=self._trouble,
            )


def _floor(second: int, step: int) -> int:
    return second // step * step


def _ceil(second: int, step: int) -> int:
    return -(-second // step) * step
