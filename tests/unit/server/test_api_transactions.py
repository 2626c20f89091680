"""Transactions over the API, and the server as the coordinator that goes on when nobody else does.

The log is in memory; participants are reached through a mesh that the test plays.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.errors import UnavailableError
from bedstone.model.api import CallRequest, CallResult, TokenRequest
from bedstone.model.resources import App, Database, Node, Presence
from bedstone.model.spec import AppSpec
from bedstone.server.api import build_api
from bedstone.server.changes import Changes
from bedstone.server.transactions import Transactions, through_mesh
from bedstone.store import Put, Store, open_store
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.model import Branch, Event, Mode, Outcome, State, Transaction
from bedstone.transactions.model import BranchState as End

URL = "http://accounts/.bedstone/transactions/hold"
REPORT: dict[str, object] = {
    "table": "accounts",
    "before": {"n": 1},
    "after": {"n": 2},
    "now": {"n": 3},
}


def spec(*, second_person: bool = False, log: bool = True) -> AppSpec:
    declared: dict[str, Any] = {
        "app": "bank",
        "workloads": {"accounts": {"run": "accounts:app", "uses": ["ledger"]}},
        "databases": {"ledger": {}},
    }
    if log:
        declared["transactions"] = {"database": "ledger", "second_person": second_person}
    return AppSpec.model_validate(declared)


class PlayedMesh:
    """The queries that calls of participants go through."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, CallRequest]] = []
        self.status = 200
        self.body: dict[str, object] = {"done": True}

    async def call(self, app: str, workload: str, request: CallRequest) -> CallResult:
        self.asked.append((app, workload, request))
        body = base64.b64encode(json.dumps(self.body).encode()).decode()
        return CallResult(status=self.status, body=body)


class World:
    """A server's API over one app's log."""

    def __init__(self, store: Store, loop: ControlLoop) -> None:
        self.store, self.loop = store, loop
        self.log = MemoryLog()
        self.mesh = PlayedMesh()
        self.located: list[str] = []
        self.trouble: Exception | None = None
        self.transactions = Transactions(
            loop,
            self._locate,
            through_mesh(self.mesh),  # type: ignore[arg-type]
            open_log=lambda _: self.log,
        )
        self._changes = Changes(store, loop)
        self._api = build_api(store, None, self._changes, self.transactions)  # type: ignore[arg-type]

    async def _locate(self, database: Database) -> str:
        self.located.append(database.path)
        if self.trouble is not None:
            raise self.trouble
        return "postgresql://operator@127.0.0.1/ledger"

    async def apply(self, declared: AppSpec) -> None:
        app = App(name="bank", spec=declared)
        here = (Node(name="n", address="127.0.0.1"), Presence(node="n"))
        revision = await self.store.commit([Put(r.key, r.encode()) for r in (app, *here)])
        await self.loop.reached(revision)

    @asynccontextmanager
    async def client(self, secret: str = "") -> AsyncIterator[httpx.AsyncClient]:
        """A local caller's, or that of somebody with a token."""
        peer = "192.0.2.1" if secret else "local:0"
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        transport = httpx.ASGITransport(app=self._api, client=(peer, 0))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://api", headers=headers
        ) as client:
            yield client

    async def another(self) -> str:
        """Another operator's token."""
        request = TokenRequest(name="ada", role="operator")
        return (await self._changes.grant(request, "test")).secret or ""

    async def ask(self, path: str, body: object = None, secret: str = "") -> httpx.Response:
        async with self.client(secret) as client:
            url = f"/v1/apps/bank/transactions{path}"
            return await (client.get(url) if body is None else client.post(url, json=body))

    async def open(self) -> None:
        """Wait until the log is open."""
        async with asyncio.timeout(10):
            while (await self.ask("")).status_code == 503:  # noqa: ASYNC110 - of no event
                await asyncio.sleep(0.01)

    async def stuck(self, xid: str) -> None:
        """Write an aborting transaction with a stuck branch, of an owner that lives."""
        await self.log.claim("accounts/1", 60.0, 0)
        now = await self.log.now()
        branch = Branch(0, Mode.AT, URL, b'{"secret": 1}', locks=(f"ledger/accounts/{xid}",))
        await self.log.begin(
            Transaction(xid, "transfer", now + 60, now, "accounts/1", 1, branches=(branch,))
        )
        await self.log.decide(xid, State.ABORTING)
        outcome = Outcome(1, End.REGISTERED, "a dirty row", REPORT)
        await self.log.record(xid, "accounts/1", 1, [outcome], now + 60)


def run(check: Callable[[World], Awaitable[None]], declared: AppSpec | None = None) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
            world = World(store, loop)
            tasks = [asyncio.create_task(loop.run()), asyncio.create_task(world.transactions.run())]
            await loop.loaded()
            try:
                await world.apply(declared or spec())
                await asyncio.wait_for(check(world), 30)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_a_list_is_read_in_parts_and_by_state() -> None:
    async def check(world: World) -> None:
        await world.open()
        for name in ("a", "b", "c"):
            await world.stuck(name)
        first = (await world.ask("?limit=2")).json()
        assert [item["xid"] for item in first["items"]] == ["a", "b"]
        rest = (await world.ask(f"?limit=2&after={first['next']}")).json()
        assert ([item["xid"] for item in rest["items"]], rest["next"]) == (["c"], None)
        assert (await world.ask("?state=committed")).json()["items"] == []
        assert len((await world.ask("?stuck=true")).json()["items"]) == 3
        refused = await world.ask("?state=done")
        assert (refused.status_code, "expected one of" in refused.text) == (422, True)

    run(check)


def test_one_is_shown_whole_but_for_its_payload() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        answer = await world.ask("/a")
        shown = answer.json()
        assert shown["branches"][0]["stuck"] == REPORT
        assert shown["branches"][0]["locks"] == ["ledger/accounts/a"]
        assert "secret" not in answer.text
        assert [e["kind"] for e in shown["events"]] == ["begun", "registered", "decided", "stuck"]
        missing = await world.ask("/nothing")
        assert missing.status_code == 404, "never to be read as finished"

    run(check)


def test_what_steps_return_and_signals_bring_is_shown_by_its_digest() -> None:
    async def check(world: World) -> None:
        await world.open()
        now = await world.log.now()
        branches = (Branch(0, Mode.SAGA, URL, b"{}"),)
        saga = Transaction("s", "trip", now + 60, now, "accounts/1", 1, branches=branches)
        await world.log.begin(saga)
        done = Event(now, "step", 1, {"path": "pay", "mark": "done", "result": {"card": "secret"}})
        await world.log.journal("s", "accounts/1", 1, [done])
        await world.log.amend("s", Event(now, "signal", 1, {"name": "paid", "payload": "secret"}))
        answer = await world.ask("/s")
        assert "secret" not in answer.text
        step, signal = answer.json()["events"][-2:]
        assert step["detail"]["path"] == "pay"
        assert step["detail"]["result"].startswith("sha256:")
        assert signal["detail"]["payload"].startswith("sha256:")
        assert step["detail"]["result"] != signal["detail"]["payload"]

    run(check)


def test_a_repair_says_who_and_why_and_ends_the_transaction_with_its_locks() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        assert (await world.ask("/a/repair", {"branch": 1})).status_code == 422
        assert (await world.ask("/a/repair", {"branch": 2, "why": "x"})).status_code == 404
        done = (await world.ask("/a/repair", {"branch": 1, "why": "set by hand"})).json()
        assert done["outcome"] == "repaired"
        assert done["detail"]["transaction"]["state"] == "aborted"
        (event,) = (e for e in done["detail"]["events"] if e["kind"] == "repaired")
        assert event["detail"]["why"] == "set by hand"
        assert event["detail"]["by"].startswith("local:")
        assert await world.log.locked(["ledger/accounts/a"]) == {}
        again = await world.ask("/a/repair", {"branch": 1, "why": "x"})
        assert again.status_code == 409

    run(check)


def test_what_fails_for_ever_can_be_repaired_and_what_has_only_failed_cannot() -> None:
    """Its participant may be gone for good."""

    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        await world.ask("/a/retry", {"why": "again"})
        failed = Outcome(1, End.REGISTERED, "no participant")
        await world.log.record("a", "accounts/1", 1, [failed], 1e12)
        refused = await world.ask("/a/repair", {"branch": 1, "why": "gone"})
        assert (refused.status_code, "has failed 2 times" in refused.text) == (409, True)
        for _ in range(8):
            await world.log.record("a", "accounts/1", 1, [failed], 1e12)
        done = (await world.ask("/a/repair", {"branch": 1, "why": "gone"})).json()
        assert done["detail"]["transaction"]["state"] == "aborted"

    run(check)


def test_what_has_ended_needs_no_repair() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.log.claim("accounts/1", 60.0, 0)
        now = await world.log.now()
        branches = (Branch(0, Mode.TCC, URL), Branch(0, Mode.TCC, URL))
        begun = Transaction("b", "", now + 60, now, "accounts/1", 1, branches=branches)
        await world.log.begin(begun)
        await world.log.decide("b", State.COMMITTING)
        await world.log.record("b", "accounts/1", 1, [Outcome(1, End.CONFIRMED)], now)
        refused = await world.ask("/b/repair", {"branch": 1, "why": "x"})
        assert (refused.status_code, "already confirmed" in refused.text) == (409, True)

    run(check)


def test_a_second_person_may_be_demanded_and_is_not_the_first() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        asked = {"branch": 1, "why": "set by hand"}
        for _ in range(2):
            assert (await world.ask("/a/repair", asked)).json()["outcome"] == "proposed"
            held = await world.log.locked(["ledger/accounts/a"])
            assert held == {"ledger/accounts/a": "a"}, "nothing is done by one alone"
        done = (await world.ask("/a/repair", asked, await world.another())).json()
        assert done["outcome"] == "repaired"
        (event,) = (e for e in done["detail"]["events"] if e["kind"] == "repaired")
        assert event["detail"]["by"] != event["detail"]["second"]

    run(check, spec(second_person=True))


def test_a_proposal_from_before_it_became_stuck_again_does_not_count() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        asked = {"branch": 1, "why": "set by hand"}
        assert (await world.ask("/a/repair", asked)).json()["outcome"] == "proposed"
        await world.log.record(
            "a", "accounts/1", 1, [Outcome(1, End.REGISTERED, "dirty again", REPORT)], 1e12
        )
        assert (await world.ask("/a/repair", asked, await world.another())).json()[
            "outcome"
        ] == "proposed"

    run(check, spec(second_person=True))


def test_retry_makes_a_stuck_branch_due_again() -> None:
    async def check(world: World) -> None:
        await world.open()
        await world.stuck("a")
        shown = (await world.ask("/a/retry", {"why": "set back"})).json()
        assert shown["transaction"]["stuck"] is False
        assert shown["events"][-1]["kind"] == "retried"
        (due,) = await world.log.owned("accounts/1", 10)
        assert due.xid == "a"

    run(check)


def test_the_server_goes_on_where_the_owner_has_died() -> None:
    """It calls the participant through the mesh, and ends the transaction."""

    async def check(world: World) -> None:
        await world.log.claim("accounts/gone", 0.0, 0)
        now = await world.log.now()
        branches = (Branch(0, Mode.TCC, URL, b"{}"),)
        lost = Transaction("lost", "transfer", now + 60, now, "accounts/gone", 1, branches=branches)
        await world.log.begin(lost)
        await world.log.decide("lost", State.COMMITTING)
        await world.open()
        async with asyncio.timeout(20):
            while not (await world.log.get("lost")).state.ended:  # noqa: ASYNC110 - of no event
                await asyncio.sleep(0.02)
        app, workload, request = world.mesh.asked[0]
        assert (app, workload, request.path) == (
            "bank",
            "accounts",
            "/.bedstone/transactions/hold",
        )
        assert json.loads(base64.b64decode(request.body))["phase"] == "confirm"

    run(check)


def test_an_answer_that_is_no_participant_s_ends_nothing() -> None:
    """An application that answers 200 to anything has confirmed nothing."""

    async def check(world: World) -> None:
        world.mesh.body = {"hello": "world"}
        now = await world.log.now()
        branches = (Branch(0, Mode.TCC, URL, b"{}"),)
        await world.log.begin(
            Transaction("lost", "transfer", now + 60, now, "accounts/gone", 1, branches=branches)
        )
        await world.log.decide("lost", State.COMMITTING)
        await world.open()
        async with asyncio.timeout(20):
            while not (await world.log.get("lost")).branches[0].attempts:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        shown = (await world.ask("/lost")).json()
        assert shown["transaction"]["state"] == "committing"
        assert "not as a participant does" in shown["transaction"]["trouble"]

    run(check)


def test_the_server_calls_participants_alone_whatever_the_log_names() -> None:
    """It calls as the operator, who may reach everything: who writes the log must not use that."""

    async def check(world: World) -> None:
        now = await world.log.now()
        branches = (Branch(0, Mode.TCC, "http://accounts/admin/delete", b"{}"),)
        await world.log.begin(
            Transaction("lost", "transfer", now + 60, now, "accounts/gone", 1, branches=branches)
        )
        await world.log.decide("lost", State.COMMITTING)
        await world.open()
        async with asyncio.timeout(20):
            while not (await world.log.get("lost")).branches[0].attempts:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert world.mesh.asked == []
        shown = (await world.ask("/lost")).json()
        assert "expected http://SERVICE" in shown["transaction"]["trouble"]

    run(check)


def test_a_log_that_cannot_be_opened_is_said_and_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bedstone.server.transactions._FIRST_PAUSE", 0.01)

    async def check(world: World) -> None:
        world.trouble = UnavailableError("database bank/default/ledger: it is being started")
        async with asyncio.timeout(10):
            while "being started" not in (answer := await world.ask("")).text:  # noqa: ASYNC110 - of no event
                await asyncio.sleep(0.01)
        assert answer.status_code == 503
        world.trouble = None
        await world.open()
        assert set(world.located) == {"bank/default/ledger"}

    run(check)


def test_a_bug_in_one_app_s_log_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bedstone.server.transactions._FIRST_PAUSE", 0.01)

    async def check(world: World) -> None:
        world.trouble = RuntimeError("a bug")
        async with asyncio.timeout(10):
            while "an error of ours" not in (await world.ask("")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        world.trouble = None
        await world.open()

    run(check)
    assert "a bug" in caplog.text


def test_an_app_without_a_log_says_how_to_have_one() -> None:
    async def check(world: World) -> None:
        answer = await world.ask("")
        assert answer.status_code == 404
        assert "transactions: {database: NAME}" in answer.text

    run(check, spec(log=False))
