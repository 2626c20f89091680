"""Where the URL of an external database leads, and how it is dialled from inside a namespace."""

from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.model.database_url import Place, dialled_at, place_of, resolve_urls
from bedstone.model.spec import AppSpec

INSIDE = Place("127.0.0.1", 5433)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://u:p%40@db.example.org:5444/bank", Place("db.example.org", 5444)),
        ("postgres://db.example.org/bank", Place("db.example.org", 5432)),
        ("postgres://u@[2001:db8::1]:5444/bank", Place("2001:db8::1", 5444)),
        ("postgres://u@one:1,two:2/bank", Place("one", 1)),
        ("postgres:///bank?host=db&port=6", Place("db", 6)),
        ("postgres://db/bank?hostaddr=10.0.0.7", Place("10.0.0.7", 5432)),
        ("postgres:///bank", None),
        ("postgres:///bank?host=/var/run/postgresql", None),
        ("postgres://%2Fvar%2Frun/bank", None),
    ],
)
def test_a_url_leads_to_a_place(url: str, place: Place | None) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize("port", ["0", "70000", "x", "-1"])
def test_a_port_that_is_none_is_refused_without_showing_the_password(port: str) -> None:
    with pytest.raises(InvalidError) as caught:
        place_of(f"postgres://u:secret@db:{port}/bank")

    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("postgresql://u:p%40@db:1/bank", "postgresql://u:p%40@127.0.0.1:5433/bank"),
        ("postgres://db", "postgres://127.0.0.1:5433"),
        ("postgres://u@a:1,b:2/x?sslmode=require", "postgres://u@127.0.0.1:5433/x?sslmode=require"),
        ("postgres:///x?host=db&port=6&a=b%20c", "postgres://127.0.0.1:5433/x?a=b%20c"),
        ("postgres:///x?host=/run/pg", "postgres:///x?host=/run/pg"),
        (
            "postgres://u@db.example.org/x?sslmode=verify-full",
            "postgres://u@db.example.org:5433/x?sslmode=verify-full&hostaddr=127.0.0.1",
        ),
    ],
)
def test_a_url_is_dialled_at_another_address(url: str, inside: str) -> None:
    assert dialled_at(url, INSIDE) == inside


def spec(url: str) -> AppSpec:
    return AppSpec.model_validate(
        {
            "app": "bank",
            "workloads": {"web": {"run": "web:app"}},
            "databases": {"ledger": {"url": url}, "own": {}},
        }
    )


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("${env.LEDGER}", "postgres://u:p@db/bank"),
        ("${env.NONE:-postgres://other/bank}", "postgres://other/bank"),
        ("postgres://u:${env.PASSWORD}@db/bank", "postgres://u:se$cret@db/bank"),
        ("postgres://u:a$$b@db/bank", "postgres://u:a$b@db/bank"),
    ],
)
def test_references_are_replaced_by_who_applies(url: str, resolved: str) -> None:
    environ = {"LEDGER": "postgres://u:p@db/bank", "PASSWORD": "se$cret"}

    found = resolve_urls(spec(url), environ).databases

    assert found["ledger"].url == resolved
    assert list(found) == ["ledger", "own"]
    assert found["own"].url is None


@pytest.mark.parametrize("value", ["mysql://u:secret@db/x", "secret", "postgres://u:secret@db:x"])
def test_a_variable_that_holds_no_url_is_named_and_not_shown(value: str) -> None:
    with pytest.raises(InvalidError) as caught:
        resolve_urls(spec("${env.LEDGER}"), {"LEDGER": value})

    assert caught.value.message.startswith("databases.ledger.url: ")
    assert "secret" not in caught.value.message
