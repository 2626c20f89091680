"""Messages go out with the decision to commit; a two-phase message asks its database back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.messages import Chances, MemoryBroker
from bedstone.testing.processes import until
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import Transactions, transaction, use
from bedstone.transactions.broker import composed, packed, unpacked
from bedstone.transactions.errors import TransactionAbortedError
from bedstone.transactions.messages import FOREVER, Messages, TwoPhaseMessage
from bedstone.transactions.model import Branch, Mode, State


class Shop:
    """One file of orders, one broker, one log."""

    def __init__(self, folder: Path, broker: MemoryBroker | None = None) -> None:
        self.path = folder / "orders"
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS orders (item TEXT)")
        self.broker = broker or MemoryBroker()
        self.log = MemoryLog()
        self.start()

    def start(self) -> None:
        """A process of it, with its own manager over the one log."""
        self.transactions = Transactions(self.log)
        use(self.transactions)
        self.messages = Messages(self.broker, transactions=self.transactions, clock=lambda: 0.0)
        self.placed = TwoPhaseMessage(self.connect, self.messages, name="orders")

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(self.path, timeout=5) as db:
            yield db

    def items(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as db:
            return [row[0] for row in db.execute("SELECT item FROM orders")]

    async def sent(self, count: int = 1) -> list[Any]:
        """What is in the stream, once so much is; phase two goes on behind the caller's back."""
        await until(lambda: len(self.broker.stream) >= count)
        return [message.json() for message in self.broker.stream]

    async def ended(self) -> list[State]:
        found = self.log.world.transactions
        await until(lambda: all(it.state.ended for it in found.values()))
        return [it.state for it in self.log.world.transactions.values()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def run(shop: Shop, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), shop.transactions:
            await test()

    asyncio.run(main())


def test_a_message_is_sent_after_the_commit_and_not_before(shop: Shop) -> None:
    async def test() -> None:
        async with transaction("order") as scope:
            name = await shop.messages.publish("orders.placed", {"item": "lamp"})
            assert shop.broker.stream == []
        assert await shop.sent() == [{"item": "lamp"}]
        (message,) = shop.broker.stream
        assert message.id == name == f"{scope.xid}/1"
        assert message.headers["ce-id"] == name
        assert message.headers["ce-specversion"] == "1.0"
        assert message.headers["ce-type"] == "orders.placed"
        assert message.headers["ce-time"] == "1970-01-01T00:00:00Z"

    run(shop, test)


def test_an_abort_sends_nothing(shop: Shop) -> None:
    async def test() -> None:
        async def order() -> None:
            async with transaction("order"):
                await shop.messages.publish("orders.placed", {"item": "lamp"})
                raise ValueError("no stock")

        with pytest.raises(ValueError, match="no stock"):
            await order()
        assert await shop.ended() == [State.ABORTED]
        assert shop.broker.stream == []

    run(shop, test)


def test_a_publish_without_answer_is_repeated_under_the_same_id(tmp_path: Path) -> None:
    broker = MemoryBroker(3, Chances(refused=0.5, unanswered=0.5), deduplicate=False)
    shop = Shop(tmp_path, broker)

    async def test() -> None:
        async with transaction("order"):
            name = await shop.messages.publish("orders.placed", 1)
        assert await shop.ended() == [State.COMMITTED]
        assert {message.id for message in broker.stream} == {name}

    run(shop, test)


def test_outside_a_transaction_nothing_is_published(shop: Shop) -> None:
    async def test() -> None:
        with pytest.raises(InvalidError, match="not inside a transaction"):
            await shop.messages.publish("orders.placed", 1)

    run(shop, test)


@pytest.mark.parametrize(
    ("subject", "data", "headers"),
    [
        ("a b", 1, {}),
        ("orders.*", 1, {}),
        ("", 1, {}),
        ("a", object(), {}),
        ("a", 1, {"x": "1\r\nNats-Msg-Id: other"}),
    ],
)
def test_what_cannot_be_sent_is_refused(subject: str, data: Any, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        composed(subject, "1", data, headers, source="/", at=0.0)


def test_a_payload_is_read_back_and_others_are_refused() -> None:
    message = composed("a", "1", b"\x00\xff", {"x": "y"}, source="/shop", at=1.0)
    assert unpacked(packed(message)) == message
    for payload in (b"", b"[]", b"{}", b'{"subject": 1, "id": 1, "data": "*", "headers": {}}'):
        with pytest.raises(InvalidError):
            unpacked(payload)


def test_a_two_phase_message_is_both_or_neither(shop: Shop) -> None:
    async def refused() -> None:
        async with shop.placed("orders.placed", {"item": "rug"}) as db:
            await db.execute("INSERT INTO orders VALUES ('rug')")
            raise ValueError("no")

    async def test() -> None:
        async with shop.placed("orders.placed", {"item": "lamp"}) as db:
            await db.execute("INSERT INTO orders VALUES ('lamp')")
            assert shop.broker.stream == []
        assert await shop.sent() == [{"item": "lamp"}]
        with pytest.raises(ValueError, match="no"):
            await refused()
        assert sorted(await shop.ended()) == [State.ABORTED, State.COMMITTED]
        assert shop.items() == ["lamp"]
        assert len(shop.broker.stream) == 1

    run(shop, test)


@pytest.mark.parametrize("committed", [True, False])
def test_who_takes_over_asks_the_database_back(shop: Shop, committed: bool) -> None:  # noqa: FBT001
    """The first process dies before the decision, with and without its local commit."""

    class Killed(BaseException):
        pass

    async def dies() -> None:
        async with shop.transactions:
            shop.placed._commit = killed  # type: ignore[method-assign, assignment]
            shop.placed._given_up = killed  # type: ignore[method-assign, assignment]
            async with shop.placed("orders.placed", {"item": "lamp"}) as db:
                await db.execute("INSERT INTO orders VALUES ('lamp')")
                if not committed:
                    raise Killed

    async def killed(*_: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        asyncio.run(dies())
    assert [it.state for it in shop.log.world.transactions.values()] == [State.ACTIVE]
    shop.start()

    async def test() -> None:
        expected = State.COMMITTED if committed else State.ABORTED
        assert await shop.ended() == [expected]
        assert shop.items() == (["lamp"] if committed else [])
        assert [m.json() for m in shop.broker.stream] == ([{"item": "lamp"}] if committed else [])

    run(shop, test)


def test_a_late_local_transaction_fails_after_it_was_given_up(shop: Shop) -> None:
    async def test() -> None:
        branch = Branch(0, Mode.SAGA, "local:message/default/orders", b"{}")
        coordinator = shop.transactions.coordinator
        begun = await coordinator.begin("late", FOREVER, [branch])
        with pytest.raises(TransactionAbortedError):
            await shop.placed._ask_back(begun)

        async def again(*_: Any, **__: Any) -> Any:
            return begun

        coordinator.begin = again  # type: ignore[method-assign]
        with pytest.raises(TransactionAbortedError):
            async with shop.placed("orders.placed", {}) as db:
                await db.execute("INSERT INTO orders VALUES ('late')")
        assert shop.items() == []
        assert shop.broker.stream == []

    run(shop, test)


def test_the_decision_that_is_not_written_is_made_by_asking_back(shop: Shop) -> None:
    async def test() -> None:
        coordinator = shop.transactions.coordinator
        commit = coordinator.commit

        async def fails(xid: str) -> Any:
            coordinator.commit = commit  # type: ignore[method-assign]
            raise UnavailableError("the log is away")

        coordinator.commit = fails  # type: ignore[method-assign]
        async with shop.placed("orders.placed", {"item": "lamp"}) as db:
            await db.execute("INSERT INTO orders VALUES ('lamp')")
        assert await shop.ended() == [State.COMMITTED]
        assert await shop.sent() == [{"item": "lamp"}]

    run(shop, test)


class Narrow(Shop):
    """Whose pool has one connection, for all that go on at once."""

    def start(self) -> None:
        self.slots = asyncio.Semaphore(1)
        super().start()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self.slots, super().connect() as db:
            yield db


def test_asking_back_needs_no_second_connection_of_the_pool(tmp_path: Path) -> None:
    shop = Narrow(tmp_path)

    async def order(item: str) -> None:
        async with shop.placed("orders.placed", {"item": item}) as db:
            await db.execute("INSERT INTO orders VALUES (?)", (item,))
            if item != "lamp":
                raise RuntimeError(item)

    async def test() -> None:
        items = ["lamp", "desk", "chair", "shelf"]
        told = await asyncio.gather(*map(order, items), return_exceptions=True)
        assert list(map(str, told)) == ["None", "desk", "chair", "shelf"]
        await shop.ended()
        assert shop.items() == ["lamp"]
        assert await shop.sent() == [{"item": "lamp"}]

    run(shop, test)


def test_a_blocking_database_is_refused(shop: Shop) -> None:
    with pytest.raises(InvalidError, match="blocks"):
        TwoPhaseMessage(lambda: sqlite3.connect(":memory:"), shop.messages, name="x")


def test_the_payload_holds_no_more_than_the_message(shop: Shop) -> None:
    branch = shop.messages._branch("a", {"b": 1}, None)
    assert set(json.loads(branch.payload)) == {"subject", "id", "data", "headers"}
    assert branch.mode is Mode.MESSAGE
