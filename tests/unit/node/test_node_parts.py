"""The smaller parts: what is told, what is wanted, probes, requests, joining, the session."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, UnavailableError, UnknownOutcomeError, VerificationError
from bedstone.model.messages import Assignments, ProxyState, Reply
from bedstone.model.resources import (
    Address,
    App,
    Database,
    Instance,
    InstanceStatus,
    Node,
    Phase,
)
from bedstone.model.spec import AppSpec, HttpProbe, TcpProbe
from bedstone.node.config import NodeConfig, load_config
from bedstone.node.http import LARGEST_ANSWER, request
from bedstone.node.join import join, load_membership
from bedstone.node.journal import Journal, Record
from bedstone.node.probes import accepts, probe
from bedstone.node.proxy import digests
from bedstone.node.reports import Reports
from bedstone.node.session import Session
from bedstone.node.view import View, cycle_of
from bedstone.testing.node import FakeServer

NODE = Node(name="here", address="127.0.0.1")


def status(name: str = "web-1", phase: Phase = Phase.READY) -> InstanceStatus:
    return InstanceStatus(
        app="shop", workload="web", name=name, node="here", revision="r", phase=phase
    )


# Reports.


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "exit status 1\nTraceback:\n  File x\nValueError: no\n\n",
            "exit status 1: ValueError: no",
        ),
        (
            "prepare failed: exit status 2:\nerror: no table\nbye",
            "prepare failed: exit status 2: no table",
        ),
        ("\nalone\n", "alone"),
        ("\n", ""),
        ("as it is ", "as it is "),
    ],
)
def test_a_reason_is_told_in_one_line(reason: str, told: str) -> None:
    reports = Reports(NODE)
    said = status().model_copy(update={"reason": reason})
    assert reports.put(said)
    assert not reports.put(said)
    assert [found.reason for found in reports.take().instances] == [told]
    reports.put(NODE.model_copy(update={"proxy_reason": reason}))
    assert reports.node.proxy_reason == told


def test_each_change_is_told_once_and_a_hello_tells_all() -> None:
    reports = Reports(NODE)
    assert reports.put(status())
    assert not reports.put(status()), "nothing new"
    first = reports.take()
    assert [told.name for told in first.instances] == ["web-1"]
    assert reports.take().instances == ()
    reports.put(status(phase=Phase.UNREADY))
    reports.put(status(phase=Phase.READY))
    assert [told.phase for told in reports.take().instances] == [Phase.READY], "the last one wins"
    reports.put(NODE.model_copy(update={"proxy": Phase.READY}))
    hello = reports.hello()
    assert hello.node.proxy is Phase.READY
    assert len(hello.instances) == 1
    assert reports.take().node is None
    assert not reports.changed.is_set()


def test_removed_is_told_and_forgotten() -> None:
    reports = Reports(NODE)
    reports.put(status())
    reports.remove(status().key)
    report = reports.take()
    assert report.removed == (status().key,)
    assert report.instances == ()
    assert reports.hello().instances == ()


# The view.


def app(**uses: list[str]) -> App:
    workloads = {name: {"command": ["x"], "uses": used} for name, used in uses.items()}
    return App(name="shop", spec=AppSpec.model_validate({"app": "shop", "workloads": workloads}))


def test_complete_assignments_replace_and_others_change() -> None:
    view = View()
    assert not view.known
    one = Instance(app="shop", workload="web", name="w1", revision="r", node="here")
    two = one.model_copy(update={"name": "w2"})
    view.apply(Assignments(complete=True, domain="d", instances=(one,), available={"a": True}))
    view.apply(Assignments(domain="d", instances=(two,)))
    assert {i.name for i in view.instances()} == {"w1", "w2"}
    view.apply(Assignments(domain="d", removed=(one.key,)))
    assert {i.name for i in view.instances()} == {"w2"}
    view.apply(Assignments(complete=True, domain="d"))
    assert view.instances() == []
    assert view.available == {}


def test_view_survives_on_disk(tmp_path: Path) -> None:
    view = View()
    instance = Instance(app="shop", workload="web", name="w1", revision="r", node="here")
    database = Database(app="shop", name="ledger", users=["web"])
    view.apply(
        Assignments(
            complete=True,
            domain="d",
            apps=(app(web=[]),),
            instances=(instance,),
            databases=(database,),
            available={"shop/default/web": True},
        )
    )
    path = tmp_path / "view.json"
    view.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = View()
    again.load(path)
    assert again.resources == view.resources
    assert again.available == view.available
    path.write_text('{"complete": 1')
    broken = View()
    broken.load(path)
    assert not broken.known


def test_acknowledgements_come_and_go() -> None:
    view = View()
    view.apply_proxy(ProxyState(acknowledged=("a", "b"), complete=True))
    view.apply_proxy(ProxyState(acknowledged=("c",), removed=("a",)))
    assert view.acknowledged == {"b", "c"}
    view.apply_proxy(ProxyState(acknowledged=("d",), complete=True))
    assert view.acknowledged == {"d"}


def test_circles_of_uses() -> None:
    spec = app(web=["accounts"], accounts=["risk"], risk=["accounts", "audit"], audit=[]).spec
    assert cycle_of(spec, "web") == {"web"}
    assert cycle_of(spec, "accounts") == {"accounts", "risk"}
    assert cycle_of(spec, "audit") == {"audit"}
    assert cycle_of(app(web=["web"]).spec, "web") == {"web"}


# The journal.


def test_journal_is_of_one_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "instances", "run-1")
    record = Record(status(), served=True)
    journal.write(record)
    journal.write(Record(status("web-2"), served=False))
    assert journal.load() == {
        "shop/default/web/web-1": record,
        "shop/default/web/web-2": Record(status("web-2"), served=False),
    }
    journal.forget("shop/default/web/web-2")
    (tmp_path / "instances" / "damaged.json").write_text("{")
    assert len(journal.load()) == 1
    assert Journal(tmp_path / "instances", "run-2").load() == {}
    assert journal.load() == {}, "what another run left is deleted"


def test_journal_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "instances").touch()
    journal = Journal(tmp_path / "instances", "run")
    assert journal.write(Record(status(), served=True)) == "cannot write its record: File exists"
    assert journal.load() == {}


# Probes.

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def make_socket(address: Address) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)  # noqa: FBT003 - its only argument
    return made


def probed(answer: bytes | None, spec: HttpProbe | TcpProbe) -> tuple[bool, str]:
    """Probe a server that answers so; None: it never does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline() not in (b"", b"\r\n"):
            pass
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    async def run() -> tuple[bool, str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            outcome = await probe(make_socket, Address(host="127.0.0.1", port=port), spec)
            await asyncio.sleep(0.02)  # the server sees the end too
        return outcome.ok, outcome.message

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "ok", "word"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, ""),
        (b"HTTP/1.1 302 Found\r\n\r\n", True, ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "answered 404"),
        (b"HTTP/1.1 503 No\r\n\r\n", False, "answered 503"),
        (b"SSH-2.0\r\n", False, "not answered in HTTP"),
        (b"", False, "not answered in HTTP"),
        (None, False, "no answer within 0.1 s"),
    ],
)
def test_http_probe(answer: bytes | None, ok: bool, word: str) -> None:  # noqa: FBT001
    passed, message = probed(answer, HttpProbe(path="/healthz", timeout=0.1))
    assert passed is ok
    assert word in message


def test_tcp_probe() -> None:
    assert probed(b"", TcpProbe()) == (True, "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = Address(host="127.0.0.1", port=port)
    outcome = asyncio.run(probe(make_socket, address, TcpProbe()))
    assert not outcome.ok
    assert "refused" in outcome.message
    assert not asyncio.run(accepts(make_socket, address))


# Requests, configuration, joining.


def test_request_says_whether_it_may_have_been_sent(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")

    async def run() -> None:
        with pytest.raises(UnavailableError):
            await request(path, "GET", "/")

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        server = await asyncio.start_unix_server(hang_up, path)
        async with server:
            with pytest.raises(UnknownOutcomeError):
                await request(path, "POST", "/", body=b"x")

    asyncio.run(run())


def test_an_answer_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A workload that answers without end must not fill the node's memory."""
    path = str(tmp_path / "x.sock")
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(endless, path)
        async with server, asyncio.timeout(20):
            with pytest.raises(UnknownOutcomeError, match="too large: got 200"):
                await request(path, "GET", "/")
            small = await asyncio.start_unix_server(_five, path + "5")
            async with small:
                assert (await request(path + "5", "GET", "/", largest=5)).body == b"12345"

    asyncio.run(run())
    assert LARGEST_ANSWER < sent < 2 * LARGEST_ANSWER


async def _five(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n12345")
    writer.close()


def test_configuration_errors_say_where(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    with pytest.raises(InvalidError, match="cannot read"):
        load_config(path)
    path.write_text("{")
    with pytest.raises(InvalidError, match="not JSON"):
        load_config(path)
    path.write_text(json.dumps({"name": "n", "colour": "red"}))
    with pytest.raises(InvalidError, match=r"node\.json"):
        load_config(path)


def config(folder: Path) -> NodeConfig:
    return NodeConfig(
        name="here",
        state_dir=folder,
        run_dir=folder,
        api=str(folder / "api.sock"),
        supervisor=folder / "s.sock",
    )


def test_join_is_kept_and_the_key_stays_private(tmp_path: Path) -> None:
    async def run() -> None:
        async with FakeServer(tmp_path / "authority", tmp_path / "api.sock") as server:
            membership, svid = await join(config(tmp_path), "run")
            assert membership.session == server.session
            assert load_membership(config(tmp_path)) == (membership, svid)
        with pytest.raises(UnavailableError):
            await join(config(tmp_path), "run")

    asyncio.run(run())
    for path in (tmp_path / "node").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_join_verifies_what_it_is_given(tmp_path: Path) -> None:
    async def run() -> None:
        async with FakeServer(tmp_path / "authority", tmp_path / "api.sock") as server:
            sign = server.authority.sign
            server.authority.sign = lambda request, _, **options: sign(  # type: ignore[method-assign]
                request, "spiffe://other/node/there", **options
            )
            with pytest.raises(VerificationError):
                await join(config(tmp_path), "run")
        assert load_membership(config(tmp_path)) is None

    asyncio.run(run())


# The session.


def test_session_reconnects_and_tells_everything_again(tmp_path: Path) -> None:
    async def run() -> None:
        reports = Reports(NODE)
        async with FakeServer(tmp_path / "authority", tmp_path / "api.sock") as server:
            _, svid = await join(config(tmp_path), "run")
            failures = 0

            async def failed() -> None:
                nonlocal failures
                failures += 1

            session = Session(
                lambda: server.session,
                lambda: svid,
                reports,
                lambda _: None,
                failed,
                lambda: None,
                heartbeat=0.1,
            )
            task = asyncio.ensure_future(session.run())
            try:
                await server.until(lambda: len(server.hellos) == 1)
                reports.put(status())
                await server.until(lambda: status().key in server.statuses)
                await server.until(lambda: len(server.heartbeats) > 3)
                await server.stop()
                async with asyncio.timeout(15):
                    while session.connected.is_set() or failures == 0:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.01)
                reports.put(status("web-2"))
                await server.start()
                await server.until(lambda: len(server.hellos) == 2)
                told = {told.name for told in server.hellos[1].instances}
                assert told == {"web-1", "web-2"}
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_session_begins_anew_after_a_message_that_cannot_be_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with FakeServer(tmp_path / "authority", tmp_path / "api.sock") as server:
            _, svid = await join(config(tmp_path), "run")

            async def failed() -> None:
                pass

            session = Session(
                lambda: server.session,
                lambda: svid,
                Reports(NODE),
                lambda _: None,
                failed,
                lambda: None,
                heartbeat=0.1,
            )
            task = asyncio.ensure_future(session.run())
            try:
                await asyncio.wait_for(session.connected.wait(), 5)
                # No UTF-8 says this.
                assert session.send(Reply(id="1").model_copy(update={"message": "\udcff"}))
                await server.until(lambda: len(server.hellos) == 2, 5)
                beats = len(server.heartbeats)
                await server.until(lambda: len(server.heartbeats) > beats, 5)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    reasons = [str(getattr(record, "reason", "")) for record in caplog.records]
    assert [reason for reason in reasons if "surrogates not allowed" in reason]


def test_digests_are_read_from_a_dump() -> None:
    assert digests(b'{"configs": []}') == {}


def test_a_node_that_always_has_something_else_to_say_is_heard_of_regularly(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with FakeServer(tmp_path / "authority", tmp_path / "api.sock") as server:
            _, svid = await join(config(tmp_path), "run")

            async def failed() -> None:
                pass

            async def talk(session: Session) -> None:
                while True:
                    session.send(Reply(id="1", message="a second of series"))
                    await asyncio.sleep(0.02)

            session = Session(
                lambda: server.session,
                lambda: svid,
                Reports(NODE),
                lambda _: None,
                failed,
                lambda: None,
                heartbeat=0.1,
            )
            tasks = [asyncio.ensure_future(session.run()), asyncio.ensure_future(talk(session))]
            try:
                await server.until(lambda: len(server.heartbeats) > 5, 5)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_port_of_a_box_that_is_closed_says_where_to_listen() -> None:
    """In a network stack of its own a program on 127.0.0.1 hears nobody."""

    def refusing(_: Address) -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    place = Address(host="10.107.0.2", port=8080)
    outcome = asyncio.run(probe(refusing, place, TcpProbe()))
    assert outcome.message == (
        "port 8080: connection refused; it starts yet, or listens on 127.0.0.1 instead of "
        "0.0.0.0:8080"
    )
