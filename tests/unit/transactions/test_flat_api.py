"""`import bedstone.transactions`: small, fast, and nothing of the server in it."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bedstone import transactions
from bedstone.transactions import manager

HEAVY = (
    "bedstone.server",
    "bedstone.node",
    "bedstone.control",
    "bedstone.store",
    "bedstone.engines",
    "bedstone.runtime",
    "sqlglot",
    "nats",
    "asyncpg",
    "asyncmy",
    "aiosqlite",
    "sqlalchemy",
    "psycopg",
    "pymysql",
    "httpx",
    "pydantic",
)
PROGRAM = """
import json, sys, time
start = time.process_time()
import bedstone.transactions
first = time.process_time() - start
bare = sorted(sys.modules)
from bedstone.transactions import Tcc, Transactions, current, tcc, together, transaction
print(json.dumps([first, bare, sorted(sys.modules)]))
"""


def test_importing_it_costs_little_and_loads_nothing_heavy() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, bare, used = json.loads(ran.stdout)
    assert seconds < 0.15
    assert [name for name in bare if name.startswith("bedstone.transactions.")] == []
    assert [name for name in used if name.startswith(HEAVY)] == []


@pytest.mark.parametrize("name", transactions.__all__)
def test_every_name_can_be_had(name: str) -> None:
    assert getattr(transactions, name).__name__ == name
    assert name in dir(transactions)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="sagas"):
        transactions.sagas  # noqa: B018


def test_the_table_of_modules_and_the_types_agree() -> None:
    tree = ast.parse(Path(str(transactions.__file__)).read_text())
    typed = {
        (node.module.rpartition(".")[2], alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bedstone.")
        for alias in node.names
        if node.module is not None
    }
    assert typed == {(module, name) for name, module in transactions._WHERE.items()}
    assert sorted(transactions._WHERE) == sorted(transactions.__all__)


def test_a_function_is_not_hidden_by_its_module() -> None:
    setattr(transactions, "tcc", importlib.import_module("bedstone.transactions.tcc"))  # noqa: B010
    assert callable(transactions.tcc)


THE_READERS_OWN = """
from fastapi import FastAPI
async def send_tickets(context): ...
async def book_flight(db, context): ...
cancel_flight = book_hotel = cancel_hotel = book_flight
flights = hotels = database = "sqlite:///flights.db"
messages = Messages("nats://localhost", name="examples")
"""


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docstrings, one after the other in one module, as a reader would type them.

    What awaits outside of a function is compiled only.
    """
    monkeypatch.setattr(manager, "_common", {})  # what they declare stays here
    monkeypatch.setattr(manager, "_common_databases", {})
    names = {name: getattr(transactions, name) for name in transactions.__all__}
    names["__name__"] = "examples"
    exec(THE_READERS_OWN, names)
    parser, ran = doctest.DocTestParser(), 0
    for thing in (transactions.Tcc, *(names[name] for name in transactions.__all__)):
        for example in parser.get_examples(inspect.getdoc(thing) or ""):
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(example.source, repr(thing), "single", flags)
            if not code.co_flags & inspect.CO_COROUTINE:
                exec(code, names)
                ran += 1
    assert ran >= 6


def test_every_module_it_names_is_there() -> None:
    for module in transactions._MODULES:
        importlib.import_module(f"bedstone.transactions.{module}")
