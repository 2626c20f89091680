"""Sagas whose process is killed at any moment: another one finishes them, forward or backward."""

from __future__ import annotations

import asyncio
import random
import runpy
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from bedstone.transactions.logs import open_log
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State
from bedstone.transactions.saga import saga, signal

pytestmark = pytest.mark.timeout(240)
PROGRAM = Path(__file__).with_name("programs") / "trips.py"
_names = runpy.run_path(str(PROGRAM))
TABLES, trip = _names["TABLES"], _names["trip"]


@dataclass
class Place:
    """A log and a database."""

    url: str

    @contextmanager
    def booking(self, kind: str, trips: int) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), kind, self.url, self.url, str(trips)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def killed_after(self, kind: str, trips: int, lines: int) -> None:
        """Let it book, and kill it after so many lines."""
        with self.booking(kind, trips) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline()

    async def finished(self, kind: str) -> dict[str, State]:
        """What became of all, once another process has seen to them."""
        async with Transactions(self.url, lease=1.0) as transactions:
            saga(trip(kind, self.url), transactions)
            while True:
                found = await transactions.ask(lambda _, log: log.list(limit=1000))
                assert not [it.branches[0].stuck for it in found if it.branches[0].stuck]
                if found and all(it.state.ended for it in found):
                    return {it.xid: it.state for it in found}
                await asyncio.sleep(0.1)

    def booked(self) -> dict[str, set[str]]:
        """What each trip has, in the database and at the service."""
        with psycopg.connect(self.url) as db:
            rows = db.execute(
                "SELECT trip, part FROM booked UNION ALL "
                "SELECT trip, part FROM called WHERE NOT undone"
            ).fetchall()
        return {xid: {part for trip, part in rows if trip == xid} for xid, _ in rows}


@pytest.fixture
def place(postgres_url: str) -> Place:
    name = f"d{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(url) as db:
        db.execute(TABLES)
    return Place(url)


@pytest.mark.parametrize("lines", [1, 2, 5, 9, 14, 20, 26, 33])
def test_a_killed_process_leaves_all_of_a_trip_or_nothing(place: Place, lines: int) -> None:
    place.killed_after("backward", 6, lines)
    ends = asyncio.run(place.finished("backward"))
    whole = {"flight", "hotel", "car", "insurance", "reserve", "charge", "ticket"}
    booked = place.booked()
    for xid, end in ends.items():
        assert booked.get(xid, set()) == (whole if end is State.COMMITTED else set())
    assert set(booked) <= set(ends)


@pytest.mark.parametrize("lines", [1, 4, 8, 13])
def test_a_killed_forward_saga_goes_on(place: Place, lines: int) -> None:
    place.killed_after("forward", 4, lines)
    ends = asyncio.run(place.finished("forward"))
    assert set(ends.values()) == {State.COMMITTED}
    assert place.booked() == {xid: {"flight", "mail", "hotel"} for xid in ends}


def test_it_survives_being_killed_again_and_again(place: Place) -> None:
    place.killed_after("backward", 6, 8)
    order = random.Random(7)
    for _ in range(5):
        with place.booking("backward", 1) as process:
            assert process.stdout is not None
            for _ in range(order.randrange(2, 12)):
                assert process.stdout.readline()
    ends = asyncio.run(place.finished("backward"))
    assert len(ends) >= 6
    booked = place.booked()
    assert {xid for xid, end in ends.items() if end is State.COMMITTED} == set(booked)
    assert all(len(parts) == 7 for parts in booked.values())


def test_a_timer_survives_its_process(place: Place) -> None:
    async def armed() -> float:
        async with open_log(place.url) as log:
            while True:
                for found in await log.list():
                    times = [it for it in await log.events(found.xid) if it.kind == "timer"]
                    if times:
                        return float(str(times[0].detail["until"]))
                await asyncio.sleep(0.02)

    with place.booking("timed", 1):
        until = asyncio.run(armed())
    ends = asyncio.run(place.finished("timed"))
    assert set(ends.values()) == {State.COMMITTED}
    (parts,) = place.booked().values()
    assert parts == {"flight", "hotel"}

    async def decided() -> float:
        async with open_log(place.url) as log:
            events = await log.events(next(iter(ends)))
            assert len([it for it in events if it.kind == "timer"]) == 1
            return next(it.at for it in events if it.kind == "decided")

    assert asyncio.run(decided()) >= until


def test_an_event_arrives_while_no_process_runs(place: Place) -> None:
    with place.booking("waiting", 1) as process:
        assert process.stdout is not None
        xid = process.stdout.readline().strip()
        while "flight" not in process.stdout.readline():
            pass

    async def paid() -> None:
        async with Transactions(place.url, lease=1.0) as other:  # has none of the sagas
            await signal(xid, "paid", {"by": "ada"}, transactions=other)

    asyncio.run(paid())
    assert asyncio.run(place.finished("waiting")) == {xid: State.COMMITTED}
    assert place.booked() == {xid: {"flight", "hotel"}}

    async def result() -> object:
        async with Transactions(place.url) as transactions:
            return await saga(trip("waiting", place.url), transactions).result(xid)

    assert asyncio.run(result()) == {"flight": "flight", "paid": {"by": "ada"}, "hotel": "hotel"}
