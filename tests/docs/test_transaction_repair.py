"""The guide to stuck transactions, done as it says, on an app that makes some."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from bedstone.testing.domain import Domain, free_port
from bedstone.testing.shown import missing

GUIDE = "docs/how-to/transactions-repair.md"
pytestmark = pytest.mark.timeout(240)

MIGRATE = """
import os, psycopg
with psycopg.connect(os.environ["STOCK_URL"]) as db:
    db.execute("CREATE TABLE IF NOT EXISTS items"
        " (id text PRIMARY KEY, stock int NOT NULL, price int NOT NULL)")
    db.execute("INSERT INTO items VALUES ('lamp', 7, 40) ON CONFLICT DO NOTHING")
"""
ORDERS = """
import os, psycopg
from fastapi import FastAPI
from bedstone.transactions import automatic, transaction
app = FastAPI()
stock = automatic(os.environ["STOCK_URL"], name="stock")

@app.get("/healthz")
def healthz():
    return "ok"

@app.post("/orders")
async def order():
    try:
        async with transaction("order") as scope:
            async with stock.connect() as db:
                await db.execute("UPDATE items SET stock = stock - 1 WHERE id = 'lamp'")
                await db.commit()
            with psycopg.connect(os.environ["STOCK_URL"]) as other:
                other.execute("UPDATE items SET stock = 20 WHERE id = 'lamp'")
            raise ValueError("the card was refused")
    except ValueError:
        return scope.xid
"""


@pytest.fixture
def shop(blocks: Callable[[str], list[Any]]) -> Iterator[Domain]:
    (manifest,) = [block.text for block in blocks(GUIDE) if block.what == "manifest"]
    domain = Domain.make(manifest=manifest.replace(", second_person: true", ""))
    try:
        (domain.directory / "migrate.py").write_text(MIGRATE)
        (domain.directory / "orders.py").write_text(ORDERS)
        yield domain
        domain.down()
    finally:
        domain.discard()


def plain(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", "TIME", text)
    text = re.sub(r"orders/orders-\S+,", "orders/INSTANCE,", text)
    return re.sub(r"\b\d+(\.\d+)?(ms|s|m)\b", "AGE", text)


class Person:
    """Who follows the guide; each id in it stands for one transaction of ours."""

    def __init__(self, shop: Domain, api: int) -> None:
        self.shop = shop
        self.api = api
        self.ids: dict[str, str] = {}

    def follow(self, block: Any) -> None:
        for command, shown in block.commands():
            for xid in re.findall(r"\b1a20fab[0-9a-f]{20,}\b", block.text):
                if xid not in self.ids:
                    self.ids[xid] = self.stuck()
            if block.what == "eventually":
                wanted = functools.partial(self._shows, command, shown)
                self.shop.wait(wanted, what=command)
            else:
                gap = self._gap(command, shown)
                assert gap is None, f"{block.name}: expected {gap}"

    def stuck(self) -> str:
        """A transaction that waits for a person."""
        self.sql("UPDATE items SET stock = 7")
        xid = str(json.loads(self.shop.ok("call", "orders/orders", "-X", "POST")))
        self.shop.wait(lambda: xid in self.shop.run("tx", "ls", "--stuck").stdout)
        return xid

    def sql(self, statement: str) -> None:
        """Use the database as the guide says."""
        (address,) = re.findall(r"postgres at ([\d.]+):(\d+)", self.shop.ok("ps"))
        folder = self.shop.state / "data" / "shop" / "default" / "stock"
        password = (folder / "superuser.password").read_text().strip()
        with psycopg.connect(
            host=address[0], port=address[1], user="postgres", password=password, dbname="stock"
        ) as db:
            db.execute(statement.encode())

    def _shows(self, command: str, shown: list[str]) -> bool:
        return self._gap(command, shown) is None

    def _gap(self, command: str, shown: list[str]) -> str | None:
        text, lines = command, "\n".join(shown)
        for old, new in self.ids.items():
            text, lines = text.replace(old, new), lines.replace(old, new)
        words = shlex.split(text.replace(":8443", f":{self.api}"))[1:]
        told = plain(self.shop.ok(*words))
        gap = missing(plain(lines).splitlines(), told)
        return None if gap is None else f"{gap!r} in\n{told}"


def test_the_guide_to_stuck_transactions(shop: Domain, blocks: Callable[[str], list[Any]]) -> None:
    api = free_port()
    shop.ok("up", "--detach", "--wait", "--api-listen", f"127.0.0.1:{api}")
    token = shop.ok("token", "create", "ada", "--role", "operator")
    (shop.directory / "ada.token").write_text(token)
    person = Person(shop, api)
    for block in blocks(GUIDE):
        match block.language:
            case "console":
                person.follow(block)
            case "sql":
                person.sql(block.text)
            case "yaml":
                (shop.directory / "bedstone.yaml").write_text(block.text)
                shop.ok("apply", "-f", "bedstone.yaml")
    assert len(person.ids) == 3
    assert "there is no transaction" in shop.run("tx", "ls", "--stuck").stderr
