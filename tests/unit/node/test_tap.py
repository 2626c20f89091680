"""Live taps on a node: the proxy writes down only while somebody looks on; nobody is held up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bedstone.node import tap as module
from bedstone.node.tap import Tap, Taps, Wanted
from bedstone.telemetry.requests import Hop, ProxyRequest

REQUEST = ProxyRequest(
    hop=Hop("outbound", "bank", "default", "web", "web-1"),
    source="web",
    target="accounts",
    method="POST",
    path="/transfers",
    route="",
    status=201,
    flags="",
    grpc=None,
    details="",
    start=1_700_000_000.0,
    seconds=0.012,
    bytes_in=10,
    bytes_out=20,
    trace="4bf92f3577b34da6a3ce929d00000000",
    span="00f067aa0ba902b7",
)
FAILED = replace(REQUEST, status=503, flags="UF", target="risk")
FOREIGN = replace(REQUEST, hop=REQUEST.hop._replace(app="shop"))


class Node:
    """Taps over a proxy that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.taps = Taps("local", self.told.append)


def paths(tap: Tap) -> list[str]:
    return [record.target for record in asyncio.run(tap.next(0.0))]


def test_the_proxy_writes_down_only_while_a_tap_is_open() -> None:
    """The largest share counts; whatever ends a tap, the last one ends it all."""
    node = Node()
    assert node.told == [0.0], "an agent before may have died with a tap open"
    with node.taps.open(Wanted("bank", share=0.1)):
        with node.taps.open(Wanted("bank", share=0.5)), node.taps.open(Wanted("shop", share=0.2)):
            assert node.told == [0.0, 0.1, 0.5]
        assert node.told[3:] == [0.1], "told when it changes, and not else"
        with pytest.raises(RuntimeError), node.taps.open(Wanted("bank")):
            raise RuntimeError
    assert node.told[-3:] == [1.0, 0.1, 0.0]
    node.taps.requests([REQUEST])  # what was under way when it ended


def test_a_tap_gets_what_it_is_about() -> None:
    node = Node()
    wanted = (
        Wanted("bank"),
        Wanted("bank", workload="risk"),
        Wanted("bank", errors=True),
        Wanted("shop"),
        Wanted("bank", workload="web"),
    )
    opened = [node.taps.open(it) for it in wanted]
    taps = [it.__enter__() for it in opened]
    node.taps.requests([REQUEST, FAILED, FOREIGN])
    assert [paths(tap) for tap in taps] == [
        ["accounts", "risk"],
        ["risk"],
        ["risk"],
        ["accounts"],
        ["accounts", "risk"],
    ]
    for it in opened:
        it.__exit__(None, None, None)


def test_a_record_tells_no_more_than_it_should() -> None:
    found = module.record("local", FAILED).model_dump()
    assert found == {
        "time": 1_700_000_000.0,
        "node": "local",
        "side": "outbound",
        "app": "bank",
        "source": "web",
        "target": "risk",
        "instance": "web-1",
        "method": "POST",
        "path": "/transfers",
        "status": 503,
        "kind": "connect",
        "flags": "UF",
        "seconds": 0.012,
        "bytes_in": 10,
        "bytes_out": 20,
        "trace": REQUEST.trace,
        "left_out": 0,
    }


def test_of_a_share_all_hops_of_a_request_are_taken_or_none() -> None:
    """Beside a tap of all requests, one of a tenth gets a tenth; failures always."""
    tenth = Wanted("bank", share=0.1)
    traces = [f"{'0' * 24}{n * 2**32 // 1000:08x}" for n in range(1000)]
    taken = [it for it in traces if tenth.takes(replace(REQUEST, trace=it), 1.0)]
    assert len(taken) == pytest.approx(100, abs=2)
    inbound = REQUEST.hop._replace(side="inbound", identity="accounts")
    again = [it for it in traces if tenth.takes(replace(REQUEST, trace=it, hop=inbound), 1.0)]
    assert again == taken
    assert all(tenth.takes(replace(FAILED, trace=it), 1.0) for it in traces)
    assert all(tenth.takes(replace(REQUEST, trace=it), 0.1) for it in traces), "as the proxy chose"
    assert tenth.takes(replace(REQUEST, trace=""), 1.0)


def test_a_slow_reader_loses_records_which_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 3)
    monkeypatch.setattr(module, "BATCH", 2)

    async def run() -> None:
        node = Node()
        with node.taps.open(Wanted("bank")) as tap:
            node.taps.requests([replace(REQUEST, path=f"/{n}") for n in range(8)])
            first = await tap.next(0.0)
            assert [(it.path, it.left_out) for it in first] == [("/0", 0), ("/1", 0)]
            node.taps.requests([replace(REQUEST, path="/later")])
            assert [it.left_out for it in await tap.next(0.0)] == [0, 5]
            assert await tap.next(0.0) == []
            node.taps.requests([REQUEST])
            assert [it.left_out for it in await tap.next(0.0)] == [0]

    asyncio.run(run())


def test_a_reader_waits_for_what_comes() -> None:
    async def run() -> None:
        node = Node()
        with node.taps.open(Wanted("bank")) as tap:
            waiting = asyncio.ensure_future(tap.next(10.0))
            await asyncio.sleep(0)
            node.taps.requests([FOREIGN])
            await asyncio.sleep(0)
            assert not waiting.done()
            node.taps.requests([REQUEST])
            assert len(await waiting) == 1

    asyncio.run(run())
