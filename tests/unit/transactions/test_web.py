"""The participants' endpoint and its caller, without a network between them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.telemetry import context as telemetry
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.errors import StuckError, TransactionAbortedError, WaitingError
from bedstone.transactions.manager import Transactions, use
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.web import HttpCaller, TransactionsMiddleware, decode, encode

ADDRESS = "http://accounts"
URL = f"{ADDRESS}/.bedstone/transactions/it"
PAYLOAD = b'{"arguments": {"amount": 5}}'


def transaction(payload: bytes = b"{}", resource: str = URL) -> tuple[Transaction, Branch]:
    branch = Branch(3, Mode.TCC, resource, payload)
    whole = Transaction(
        "x-1", "transfer", 5.0, 4.0, "owner", 2, State.COMMITTING, (branch,), 253402300800.0
    )
    return whole, branch


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 to everything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Service:
    """A service, and a caller of it by HTTP."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.know(transaction(PAYLOAD)[0])
        self.transactions = Transactions(self.log, address=ADDRESS)
        self.app = TransactionsMiddleware(application, self.transactions)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url=ADDRESS)
        self.caller = HttpCaller(client=self.client)
        self.seen: list[tuple[Transaction, Branch, Phase]] = []
        self.error: Exception | None = None
        self.context = telemetry.RequestContext()
        self.transactions.participant("it", self.participant)

    def know(self, whole: Transaction) -> None:
        """Let the log have it so."""
        self.log.world.transactions[whole.xid] = whole

    async def participant(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        self.seen.append((transaction, branch, phase))
        self.context = telemetry.current()
        if self.error is not None:
            raise self.error


def run(test: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        service = Service()
        async with asyncio.timeout(20), service.transactions, service.client:
            await test(service)

    asyncio.run(main())


@given(
    st.text(),
    st.binary(),
    st.sampled_from(Mode),
    st.sampled_from(Phase),
    st.sampled_from(State),
    st.integers(1, 2**31),
)
def test_what_is_sent_is_what_arrives(
    name: str, payload: bytes, mode: Mode, phase: Phase, state: State, epoch: int
) -> None:
    branch = Branch(7, mode, "it", payload)
    whole = Transaction("x", name, 1.5, 0.5, "me", epoch, state, (branch,))
    assert decode(encode(whole, branch, phase), "it") == (whole, branch, phase)


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_any_other_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidError, match="message"):
        decode(json.dumps(value).encode(), "it")


def test_a_participant_elsewhere_is_called() -> None:
    async def test(service: Service) -> None:
        whole, branch = transaction(PAYLOAD)
        await service.caller(whole, branch, Phase.CONFIRM)
        ((there, part, phase),) = service.seen
        assert (there.xid, there.epoch, there.name) == ("x-1", 2, "transfer")
        assert (part.number, part.payload, phase) == (3, branch.payload, Phase.CONFIRM)

    run(test)


@pytest.mark.parametrize(
    ("change", "phase", "kind"),
    [
        ({"state": State.ABORTING}, Phase.CONFIRM, ConflictError),
        ({"state": State.COMMITTED}, Phase.CONFIRM, ConflictError),
        ({"state": State.ACTIVE}, Phase.CANCEL, ConflictError),
        ({"state": State.ACTIVE}, Phase.TRY, ConflictError),
        ({"epoch": 3}, Phase.CONFIRM, ConflictError),
        ({"branches": ()}, Phase.CONFIRM, DeniedError),
        ({"branches": (Branch(3, Mode.TCC, f"{URL}/other"),)}, Phase.CONFIRM, DeniedError),
        ({"xid": "x-2"}, Phase.CONFIRM, NotFoundError),
    ],
)
def test_what_the_log_does_not_say_is_not_done(
    change: dict[str, Any], phase: Phase, kind: type[Exception]
) -> None:
    """A message can be forged, late, or another domain's: the log has the last word."""

    async def test(service: Service) -> None:
        whole, branch = transaction(PAYLOAD)
        service.log.world.transactions.clear()
        service.know(replace(whole, **change))
        with pytest.raises(kind):
            await service.caller(whole, branch, phase)
        assert service.seen == []

    run(test)


def test_the_payload_is_the_logs_and_never_the_messages() -> None:
    async def test(service: Service) -> None:
        whole, branch = transaction(b'{"arguments": {"amount": 1000000}}')
        await service.caller(whole, branch, Phase.CONFIRM)
        ((_, part, _),) = service.seen
        assert part.payload == PAYLOAD

    run(test)


def test_a_sagas_try_goes_on_where_it_is_due() -> None:
    async def test(service: Service) -> None:
        whole, branch = transaction()
        saga = replace(branch, mode=Mode.SAGA)
        service.know(replace(whole, state=State.ACTIVE, deadline=1e12, branches=(saga,)))
        await service.caller(whole, saga, Phase.TRY)
        assert [phase for _, _, phase in service.seen] == [Phase.TRY]

    run(test)


def test_it_runs_outside_of_the_callers_transaction_and_deadline() -> None:
    async def test(service: Service) -> None:
        token = telemetry.enter(telemetry.RequestContext(deadline=1e18, transaction="x"))
        try:
            await service.caller(*transaction(), Phase.CONFIRM)
        finally:
            telemetry.leave(token)
        assert service.context == telemetry.RequestContext()

    run(test)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StuckError("dirty", report={"row": 1}), StuckError),
        (WaitingError("later", until=12.5), WaitingError),
        (TransactionAbortedError("no"), TransactionAbortedError),
        (UnavailableError("down"), UnavailableError),
        (InvalidError("bad"), InvalidError),
    ],
)
def test_its_error_arrives_with_its_meaning(error: Exception, kind: type[Exception]) -> None:
    async def test(service: Service) -> None:
        service.error = error
        with pytest.raises(kind, match=str(error)) as caught:
            await service.caller(*transaction(), Phase.CONFIRM)
        for attribute in ("report", "until"):
            assert getattr(caught.value, attribute, 0) == getattr(error, attribute, 0)

    run(test)


def test_a_foreign_error_is_told_by_its_kind_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service) -> None:
        service.error = ValueError("secret")
        answer = await service.client.post(URL, content=encode(*transaction(), Phase.CONFIRM))
        assert answer.status_code == 500
        assert "ValueError" in answer.text
        assert "secret" not in answer.text

    run(test)
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"xid": "x", "epoch": 0, "phase": "try", "branch": {}}',
        b'{"xid": "x", "epoch": true, "phase": "try", "branch": {"number": 1}}',
        encode(*transaction(), Phase.CONFIRM).replace(b"confirm", b"conform"),
    ],
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    async def test(service: Service) -> None:
        answer = await service.client.post(URL, content=body)
        assert answer.status_code == 400
        assert "message" in answer.json()["detail"]
        assert service.seen == []

    run(test)


def test_a_body_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.transactions.web.LARGEST", 100)

    async def test(service: Service) -> None:
        assert (await service.client.post(URL, content=b"x" * 101)).status_code == 413

    run(test)


def test_a_name_that_nobody_has_is_not_found_and_the_caller_hears_it() -> None:
    async def test(service: Service) -> None:
        whole, branch = transaction(resource=f"{URL}/more")
        with pytest.raises(NotFoundError, match="no participant 'it/more'"):
            await service.caller(whole, branch, Phase.CONFIRM)

    run(test)


def test_other_methods_and_requests_from_outside_are_refused() -> None:
    async def test(service: Service) -> None:
        content = encode(*transaction(), Phase.CONFIRM)
        assert (await service.client.get(URL)).status_code == 405
        for caller, status in (("gateway", 403), ("orders", 200)):
            headers = {"x-bedstone-caller": f"spiffe://domain/app/{caller}"}
            answer = await service.client.post(URL, content=content, headers=headers)
            assert answer.status_code == status
        encoded = URL.replace("/.bedstone", "/%2ebedstone")
        assert (await service.client.post(encoded, content=content)).status_code == 400
        assert len(service.seen) == 1

    run(test)


def test_everything_else_is_the_applications() -> None:
    async def test(service: Service) -> None:
        assert (await service.client.get("/.bedstone")).text == "/.bedstone"

    run(test)


def test_an_answer_of_a_stranger_is_no_success() -> None:
    async def test(service: Service) -> None:
        whole, branch = transaction(resource=f"{ADDRESS}/anything")
        with pytest.raises(UnavailableError, match="not as a participant"):
            await service.caller(whole, branch, Phase.CONFIRM)

    run(test)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), UnavailableError),
        (httpx.ConnectTimeout("slow"), UnavailableError),
        (httpx.ReadTimeout("slow"), UnknownOutcomeError),
        (httpx.RemoteProtocolError("cut"), UnknownOutcomeError),
    ],
)
def test_a_network_that_fails_is_tried_again(failure: Exception, kind: type[Exception]) -> None:
    async def test(_: Service) -> None:
        def fail(request: httpx.Request) -> httpx.Response:
            raise failure

        async with httpx.AsyncClient(transport=httpx.MockTransport(fail)) as client:
            with pytest.raises(kind, match="accounts"):
                await HttpCaller(client=client)(*transaction(), Phase.CONFIRM)

    run(test)


def test_an_answer_that_never_comes_is_waited_for_so_long() -> None:
    async def test(_: Service) -> None:
        async def hang(request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            return httpx.Response(200)

        async with httpx.AsyncClient(transport=httpx.MockTransport(hang)) as client:
            with pytest.raises(UnknownOutcomeError, match=r"within 0\.01 s"):
                await HttpCaller(0.01, client)(*transaction(), Phase.CONFIRM)

    run(test)


class Server:
    """The server's side of the lifespan protocol."""

    def __init__(self, app: Any) -> None:
        self._in: asyncio.Queue[str] = asyncio.Queue()
        self._out: asyncio.Queue[str] = asyncio.Queue()
        self.task = asyncio.ensure_future(app({"type": "lifespan"}, self._receive, self._send))

    async def _receive(self) -> dict[str, str]:
        return {"type": f"lifespan.{await self._in.get()}"}

    async def _send(self, message: Any) -> None:
        await self._out.put(message["type"].removeprefix("lifespan."))

    async def say(self, what: str) -> str:
        await self._in.put(what)
        return await self._out.get()


class TestLifespan:
    """The manager starts before the application, and stops after it."""

    def test_around_an_application_that_has_the_protocol(self) -> None:
        async def test() -> None:
            transactions = Transactions(MemoryLog())
            started: list[bool] = []

            async def app(scope: Any, receive: Any, send: Any) -> None:
                for phase in ("startup", "shutdown"):
                    assert (await receive())["type"] == f"lifespan.{phase}"
                    started.append(bool(transactions.coordinator.owner))
                    await send({"type": f"lifespan.{phase}.complete"})

            server = Server(TransactionsMiddleware(app, transactions))
            assert await server.say("startup") == "startup.complete"
            assert await server.say("shutdown") == "shutdown.complete"
            await server.task
            assert started == [True, True]
            with pytest.raises(InvalidError, match="not started"):
                transactions.coordinator  # noqa: B018

        asyncio.run(test())

    def test_for_an_application_that_has_not(self) -> None:
        async def test() -> None:
            transactions = Transactions(MemoryLog())

            async def app(scope: Any, receive: Any, send: Any) -> None:
                raise ValueError(scope["type"])

            server = Server(TransactionsMiddleware(app, transactions))
            assert await server.say("startup") == "startup.complete"
            assert transactions.coordinator.owner
            assert await server.say("shutdown") == "shutdown.complete"
            await server.task

        asyncio.run(test())

    def test_a_log_that_cannot_be_opened_fails_the_start(self) -> None:
        async def test() -> None:
            server = Server(TransactionsMiddleware(application, Transactions("nothing://x")))
            assert await server.say("startup") == "startup.failed"
            await server.task

        asyncio.run(test())

    def test_without_a_log_it_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BEDSTONE_TRANSACTIONS_URL", raising=False)
        monkeypatch.delenv("TRANSACTIONS_URL", raising=False)
        use(Transactions())

        async def test() -> None:
            transport = httpx.ASGITransport(TransactionsMiddleware(application))
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.post(URL)).text == "/.bedstone/transactions/it"

        asyncio.run(test())


def test_a_failure_that_nobody_waits_for_is_no_unhandled_one() -> None:
    async def scene(service: Service) -> None:
        unhandled: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: unhandled.append(it))
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            begun.set()
            await go_on.wait()
            raise UnavailableError("too late")

        service.transactions.participant("slow", slow)
        whole, branch = transaction(resource=f"{ADDRESS}/.bedstone/transactions/slow")
        service.know(whole)
        content = encode(whole, branch, Phase.CONFIRM)
        path = "/.bedstone/transactions/slow"
        call = asyncio.create_task(service.client.post(path, content=content))
        await begun.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        (work,) = service.app._working
        go_on.set()
        await asyncio.wait([work])
        del work, call
        gc.collect()
        await asyncio.sleep(0)
        assert unhandled == []
        assert service.app._working == set()

    run(scene)
