"""The shared store when its connections are cut at every point of a write."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest

from bedstone.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.store import Delete, Put
from bedstone.store.postgres import PostgresStore
from bedstone.testing.faults import CuttingProxy, VirtualClock


@dataclass
class World:
    proxy: CuttingProxy
    url: str
    schema: str

    def store(self, clock: VirtualClock | None = None, settle: float = 20.0) -> PostgresStore:
        return PostgresStore(self.url, schema=self.schema, clock=clock, settle=settle)


@asynccontextmanager
async def cuttable(url: str) -> AsyncIterator[World]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with CuttingProxy(parts.hostname, parts.port) as proxy:
        through = url.replace(f":{parts.port}/", f":{proxy.port}/")
        yield World(proxy, through, f"f{uuid.uuid4().hex[:12]}")


POINTS = [
    (b"BEGIN", False, False),
    (b"BEGIN", True, False),
    (b"FROM entries", True, False),
    (b"unnest", False, False),
    (b"unnest", True, False),
    (b"COMMIT", False, False),
    (b"COMMIT", True, True),
]


@pytest.mark.parametrize(("point", "deliver", "applied"), POINTS)
def test_a_cut_write_is_settled(
    postgres_url: str, *, point: bytes, deliver: bool, applied: bool
) -> None:
    """A cut before COMMIT arrived applies nothing; one after it is found to be applied."""

    async def run() -> None:
        async with cuttable(postgres_url) as world, world.store() as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", revision)
            world.proxy.cut_at(point, deliver=deliver)
            if applied:
                assert await store.commit([Put("a", b"2"), Put("b", b"2")]) == revision + 1
                assert len(await anext(watch)) == 2
                revision += 1
            else:
                with pytest.raises(UnavailableError):
                    await store.commit([Put("a", b"2"), Put("b", b"2")])
            assert world.proxy.struck.is_set()
            listing = await store.list("")
            assert listing.revision == revision
            assert [it.value for it in listing.entries] == ([b"2", b"2"] if applied else [b"1"])
            assert await store.commit([Delete("a")]) == revision + 1
            assert [it.key for it in await anext(watch)] == ["a"]

    asyncio.run(run())


@pytest.mark.parametrize("deliver", [False, True])
def test_what_cannot_be_settled_is_said(postgres_url: str, *, deliver: bool) -> None:
    """The database stays away after a COMMIT was cut: the outcome is unknown."""

    async def run() -> None:
        async with cuttable(postgres_url) as world, world.store(settle=0.5) as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", revision)
            world.proxy.cut_at(b"COMMIT", deliver=deliver)
            writing = asyncio.ensure_future(store.commit([Put("a", b"2")]))
            await world.proxy.struck.wait()
            world.proxy.refusing = True
            world.proxy.cut()
            with pytest.raises(UnknownOutcomeError):
                await writing
            with pytest.raises(UnavailableError):
                await store.commit([Put("a", b"3")])
            with pytest.raises(UnavailableError):
                await store.list("")
            world.proxy.refusing = False
            following = await store.commit([Put("z", b"4")])
            assert following == revision + (2 if deliver else 1)
            seen = [(await anext(watch))[0] for _ in range(following - revision)]
            assert [it.key for it in seen] == (["a", "z"] if deliver else ["z"])

    asyncio.run(run())


def test_idle_connections_that_were_lost_are_made_anew(postgres_url: str) -> None:
    """Reads and leases go on by themselves; a write says that it was not applied."""

    async def run() -> None:
        async with cuttable(postgres_url) as world, world.store() as store:
            await store.commit([Put("a", b"1")])
            await store.grant("node", 9)
            world.proxy.cut()
            assert len((await store.list("")).entries) == 1
            world.proxy.cut()
            await store.keep_alive("node")
            world.proxy.cut()
            await store.grant("node", 9)
            world.proxy.cut()
            with pytest.raises(UnavailableError):
                await store.commit([Put("a", b"2")])
            await store.commit([Put("a", b"3")])

    asyncio.run(run())


def test_a_database_that_is_away_ends_no_lease(postgres_url: str) -> None:
    """Nobody could renew meanwhile, so that time does not count."""

    async def run() -> None:
        clock = VirtualClock()
        async with cuttable(postgres_url) as world, world.store(clock) as store:
            await store.grant("node", 5)
            await store.commit([Put("n", b"", lease="node")])
            await clock.advance(2)
            world.proxy.refusing = True
            world.proxy.cut()
            await clock.advance(20)
            world.proxy.refusing = False
            await clock.advance(1)
            assert await store.get("n") is not None
            await store.keep_alive("node")
            await clock.advance(4)
            assert await store.get("n") is not None
            await clock.advance(3)
            assert await store.get("n") is None
            with pytest.raises(NotFoundError):
                await store.keep_alive("node")

    asyncio.run(run())


def test_a_watch_goes_on_after_a_long_cut(postgres_url: str) -> None:
    """What others wrote meanwhile comes in order; history that is gone is an error."""

    async def run() -> None:
        async with cuttable(postgres_url) as world, world.store() as store:
            other = PostgresStore(postgres_url, schema=world.schema, history=16)
            async with other:
                watch = store.watch("", await store.commit([Put("a", b"")]))
                for count in (5, 40):
                    world.proxy.refusing = True
                    world.proxy.cut()
                    written = [await other.commit([Put("a", b"%d" % n)]) for n in range(count)]
                    world.proxy.refusing = False
                    if count == 5:
                        seen = [(await anext(watch))[0].revision for _ in range(count)]
                        assert seen == written
                with pytest.raises(Exception, match="no longer kept") as caught:
                    await anext(watch)
                assert getattr(caught.value, "code", None) == "conflict"

    asyncio.run(run())


def test_servers_that_start_together_create_one_store(postgres_url: str) -> None:
    schema = f"f{uuid.uuid4().hex[:12]}"
    started = asyncio.Event()

    async def serve(name: str) -> int:
        async with PostgresStore(postgres_url, schema=schema) as store:
            revision = await store.commit([Put(name, b"")])
            await started.wait()
            assert len((await store.list("")).entries) == 4
            return revision

    async def run() -> None:
        servers = [asyncio.ensure_future(serve(name)) for name in "abcd"]
        async with PostgresStore(postgres_url, schema=schema) as store:
            watch = store.watch("", 0)
            seen = [(await anext(watch))[0].revision for _ in range(4)]
            started.set()
            assert sorted(await asyncio.gather(*servers)) == seen == [1, 2, 3, 4]

    asyncio.run(run())


def test_wrong_places_are_refused_without_secrets(postgres_url: str) -> None:
    async def enter(url: str) -> None:
        async with PostgresStore.open(url):
            pass

    wrong = postgres_url.replace("postgres:", "postgres:hunter2", 1)
    assert "hunter2" in wrong
    for url, kind in (
        (wrong.replace("hunter2", "hunter2x"), UnavailableError),
        ("postgresql://u:hunter2@127.0.0.1:1/db", UnavailableError),
        (postgres_url.replace("/postgres", "/absent"), UnavailableError),
        ("postgresql://u:hunter2@[::1/db", InvalidError),
        (f"{postgres_url}?schema=Bad-Name", InvalidError),
        (f"{postgres_url}?history=0", InvalidError),
    ):
        with pytest.raises(kind) as caught:
            asyncio.run(enter(url))
        assert "hunter2" not in str(caught.value) + str(caught.value.hint)


def test_newer_tables_and_missing_rights_are_refused(postgres_url: str) -> None:
    schema = f"f{uuid.uuid4().hex[:12]}"

    async def enter(url: str, schema: str) -> None:
        async with PostgresStore(url, schema=schema):
            pass

    async def run() -> None:
        await enter(postgres_url, schema)
        connection = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
        async with connection:
            await connection.execute(f'UPDATE "{schema}".meta SET version = 99'.encode())
            await connection.execute(f"CREATE ROLE {schema} LOGIN PASSWORD 'x'".encode())
        with pytest.raises(InvalidError, match="version 99"):
            await enter(postgres_url, schema)
        parts = urlsplit(postgres_url)
        poor = f"postgresql://{schema}:x@{parts.hostname}:{parts.port}/postgres"
        with pytest.raises(DeniedError) as caught:
            await enter(poor, f"{schema}x")
        assert "grant" in (caught.value.hint or "")

    asyncio.run(run())
