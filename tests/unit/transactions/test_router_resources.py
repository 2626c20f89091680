"""Phase two goes to participants alone, whatever a branch in the log names."""

from __future__ import annotations

import asyncio

import pytest

from bedstone.errors import DeniedError, InvalidError
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.router import Router, check_name, check_resource, resource_of

BAD = [
    "http://risk/admin/delete",
    "http://risk/.bedstone/other/x",
    "http://risk/.bedstone/transactions/",
    "http://risk/.bedstone/transactions/../../admin",
    "http://risk/.bedstone/transactions/tcc/..",
    "http://risk/.bedstone/transactions/%2e%2e/admin",
    "http://risk/.bedstone/transactions//x",
    "http://risk/admin?/.bedstone/transactions/x",
    "http://risk/admin#/.bedstone/transactions/x",
    "http://risk/.bedstone/transactions/x?admin=1",
    "http://user:word@risk/.bedstone/transactions/x",
    "http://[risk/.bedstone/transactions/x",
    "ftp://risk/.bedstone/transactions/x",
]


@pytest.mark.parametrize("resource", BAD)
def test_an_address_that_is_no_participant_s_is_refused(resource: str) -> None:
    with pytest.raises(DeniedError, match="expected http://SERVICE") as caught:
        check_resource(resource)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://accounts", "https://a:8000/", "http://a/behind/it"])
def test_every_participant_s_address_is_taken(address: str) -> None:
    check_resource(resource_of(address, "message/process/orders.placed"))


@pytest.mark.parametrize("name", ["..", "tcc/..", "./x", "a/../b"])
def test_a_name_that_climbs_is_none(name: str) -> None:
    with pytest.raises(InvalidError, match="participant name"):
        check_name(name)


def test_a_branch_that_names_anything_else_is_not_called() -> None:
    """A writer of the log would have others call with their rights what it may not call itself."""
    called: list[str] = []

    async def post(transaction: Transaction, branch: Branch, phase: Phase) -> None:
        called.append(branch.resource)

    async def main() -> None:
        branch = Branch(1, Mode.TCC, BAD[0])
        whole = Transaction("x", "t", 5.0, 4.0, "o", 1, State.COMMITTING, (branch,))
        async with Router({}, None, post) as router:
            with pytest.raises(DeniedError):
                await router(whole, branch, Phase.CONFIRM)

    asyncio.run(main())
    assert called == []
