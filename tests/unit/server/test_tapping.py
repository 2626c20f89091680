"""The API's live tap: by whom, of what, from which nodes; and a slow reader holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import TypeAdapter

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.model.messages import Command, Reply
from bedstone.model.monitoring import TapRecord
from bedstone.model.resources import App
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server import tapping
from bedstone.server.tapping import Tapping, records

RECORDS = TypeAdapter(list[TapRecord])


def record(path: str, left_out: int = 0) -> TapRecord:
    return TapRecord(
        time=1.0,
        node="n",
        side="gateway",
        app="bank",
        source="gateway",
        target="web",
        method="GET",
        path=path,
        status=200,
        seconds=0.1,
        left_out=left_out,
    )


class Session:
    """A node that tells what the test says, and then stays silent, ends, or fails."""

    def __init__(self, *batches: list[TapRecord], then: Exception | str | None = "silent") -> None:
        self.batches, self.then = batches, then
        self.commands: list[Command] = []
        self.left = asyncio.Event()

    async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
        self.commands.append(command)
        try:
            for batch in self.batches:
                yield Reply(id=command.id, body=RECORDS.dump_json(batch).decode())
            if isinstance(self.then, Exception):
                raise self.then
            if self.then == "silent":
                await asyncio.Event().wait()
        finally:
            self.left.set()


class Resumed(Session):
    """One that tells one more record when it is let."""

    def __init__(self, *batches: list[TapRecord], then: Exception | str | None) -> None:
        super().__init__(*batches, then=then)
        self.resume = asyncio.Event()

    async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
        async for reply in super().command(command):
            yield reply
        await self.resume.wait()
        yield Reply(id=command.id, body=RECORDS.dump_json([record("/last")]).decode())


COMMAND = Command(id="", action="tap", app="bank")


def test_what_all_nodes_tell_is_told_and_leaving_stops_them() -> None:
    async def run() -> None:
        nodes = [Session([record("/a")], [], [record("/b")]), Session([record("/c")])]
        async with asyncio.timeout(5), aclosing(records(nodes, COMMAND)) as told:
            found = [(await anext(told)).path for _ in range(3)]
        assert sorted(found) == ["/a", "/b", "/c"]
        for node in nodes:
            assert node.left.is_set(), "its command is cancelled"
            assert node.commands[0].id
        assert nodes[0].commands[0].id != nodes[1].commands[0].id

    asyncio.run(run())


def test_a_node_that_goes_away_ends_its_part_only() -> None:
    async def run() -> None:
        gone = Session([record("/a")], then=UnavailableError("the node has gone away"))
        ends = Session([], [record("/b")], then=None)
        async with asyncio.timeout(5):
            found = [it.path async for it in records([gone, ends], COMMAND)]
        assert sorted(found) == ["/a", "/b"]

    asyncio.run(run())


def test_a_slow_reader_loses_records_which_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tapping, "ROOM", 2)

    async def run() -> None:
        batches = [[record(f"/{n}", left_out=1 if n == 3 else 0)] for n in range(6)]
        node = Resumed(*batches, then=None)
        async with asyncio.timeout(5), aclosing(records([node], COMMAND)) as told:
            first = await anext(told)  # the node has told all of these by now
            second = await anext(told)
            node.resume.set()
            last = await anext(told)
        assert [it.path for it in (first, second, last)] == ["/0", "/1", "/last"]
        assert [it.left_out for it in (first, second, last)] == [0, 0, 5]

    asyncio.run(run())


class Picture:
    def get(self, _kind: type, key: str) -> App | None:
        spec = AppSpec(app="bank", workloads={"web": WorkloadSpec(command=("web",))})
        return App(name="bank", spec=spec) if key == "apps/bank" else None

    def nodes(self) -> dict[str, object]:
        return {"away": object(), "here": object()}


class Loop:
    snapshot = Picture()


class Nodes:
    def __init__(self, **sessions: Session) -> None:
        self.sessions = sessions

    def get(self, node: str) -> Session:
        if node not in self.sessions:
            raise UnavailableError(f"node {node} has no session")
        return self.sessions[node]


async def noted(*_: Any) -> None: ...


def test_only_what_is_there_can_be_tapped() -> None:
    here = Session()
    taps = Tapping(Loop(), Nodes(here=here), noted)  # type: ignore[arg-type]
    for workload in ("", "web", "gateway", "operator"):
        assert taps.sessions("bank", workload) == [here], "a node that is away is left out"
    for app, workload in (("shop", ""), ("bank", "risk")):
        with pytest.raises(NotFoundError):
            taps.sessions(app, workload)
    with pytest.raises(UnavailableError):
        Tapping(Loop(), Nodes(), noted).sessions("bank", "")  # type: ignore[arg-type]
