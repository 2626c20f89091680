"""What enters a revision, and where databases are placed."""

from __future__ import annotations

from bedstone.control import scheduling
from bedstone.control.snapshot import Snapshot
from bedstone.model.resources import App, Database, Node, Presence, Resource
from bedstone.model.spec import AppSpec
from bedstone.store import Entry, Event, Put


def app(url: str | None) -> App:
    spec = {
        "app": "bank",
        "workloads": {
            "accounts": {"run": "accounts:app", "uses": ["ledger", "web"]},
            "web": {"run": "web:app"},
        },
        "databases": {"ledger": {"url": url} if url else {}},
    }
    return App(name="bank", spec=AppSpec.model_validate(spec))


def snapshot(*resources: Resource) -> Snapshot:
    found = Snapshot()
    for number, resource in enumerate(resources, 1):
        entry = Entry(resource.key, resource.encode(), number, number)
        found.apply([Event(resource.key, number, entry)])
    return found


def placed(found: Snapshot) -> list[Database]:
    operations = scheduling.plan(found, "bank")
    return [
        Database.decode(operation.value)
        for operation in operations
        if isinstance(operation, Put) and operation.key.startswith("databases/")
    ]


def test_the_url_of_a_database_enters_the_revision_of_its_users_only() -> None:
    urls = (None, "postgres://a/x", "postgres://b/x")
    names = {scheduling.revision_name(app(url), "accounts") for url in urls}
    others = {scheduling.revision_name(app(url), "web") for url in urls}

    assert len(names) == 3
    assert len(others) == 1


def test_an_external_database_is_looked_at_by_a_node_that_is_there() -> None:
    declared = app("postgres://a/x")
    nodes = [Node(name=name, address="127.0.0.1") for name in ("gone", "here")]
    held = Database(app="bank", name="ledger", url="postgres://a/x", node="gone")

    assert placed(snapshot(declared)) == []
    (database,) = placed(snapshot(declared, held, *nodes, Presence(node="here")))
    assert (database.node, database.users) == ("here", ["accounts"])


def test_an_engine_stays_where_its_data_is() -> None:
    nodes = [Node(name=name, address="127.0.0.1") for name in ("gone", "here")]
    held = Database(app="bank", name="ledger", node="gone", users=["accounts"])

    assert placed(snapshot(app(None), held, *nodes, Presence(node="here"))) == []


def with_log(uses: str) -> App:
    spec = {
        "app": "bank",
        "workloads": {
            "accounts": {"run": "accounts:app", "uses": [uses]},
            "web": {"run": "web:app"},
        },
        "databases": {"ledger": {}, "other": {}},
        "transactions": {"database": "ledger"},
    }
    return App(name="bank", spec=AppSpec.model_validate(spec))


def test_who_uses_the_database_of_the_transaction_log_finds_the_log() -> None:
    """Others do not, and are not rolled out for it."""
    variable = "BEDSTONE_TRANSACTIONS_URL"
    told = scheduling.declared_spec(with_log("ledger"), "accounts").env
    assert told == {variable: "${databases.ledger.url}"}
    assert scheduling.declared_spec(with_log("other"), "accounts").env == {}
    plain = with_log("ledger")
    without = plain.model_copy(
        update={"spec": plain.spec.model_copy(update={"transactions": None})}
    )
    names = {a: scheduling.revision_name(plain, a) for a in ("accounts", "web")}
    before = {a: scheduling.revision_name(without, a) for a in ("accounts", "web")}
    assert names["accounts"] != before["accounts"]
    assert names["web"] == before["web"]


def test_the_server_is_a_user_of_the_transaction_log_and_of_no_other_database() -> None:
    here = Node(name="here", address="127.0.0.1")
    found = snapshot(with_log("ledger"), here, Presence(node="here"))
    users = {database.name: database.users for database in placed(found)}
    assert users == {"ledger": ["accounts", "operator"], "other": []}
