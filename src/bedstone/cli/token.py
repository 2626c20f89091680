"""`bedstone token`: credentials for the API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, cast

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal
from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from bedstone.model.api import TokenGrant


@click.group(
    context_settings=CONTEXT,
    help=teach(
        "Make, list and revoke credentials for the API over TCP (`bedstone up --api-listen`).",
        ("bedstone token create ada --role operator > ada.token", "make one"),
        ("bedstone ps --server https://host:8443 --token-file ada.token", "use it"),
        ("bedstone token list", "which there are"),
        ("bedstone token delete ada", "revoke it"),
    ),
)
def token() -> None:
    """See `bedstone token --help`."""


@token.command(
    context_settings=CONTEXT,
    help=teach(
        "Make a credential. The secret is shown this once.",
        ("bedstone token create ci", "may read"),
        ("bedstone token create ada --role operator > ada.token", "may change, kept in a file"),
    ),
)
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["reader", "operator"]),
    default="reader",
    show_default=True,
    help="A reader sees, an operator also changes.",
)
@targeted
@output_option
def create(*, name: str, role: str, target: Target, as_json: bool) -> None:
    """See `bedstone token create --help`."""
    from pydantic import ValidationError

    from bedstone.model.api import TokenRequest

    try:
        request = TokenRequest(name=name, role=cast("Literal['reader', 'operator']", role))
    except ValidationError as error:
        raise InvalidError(
            f"got the name {name!r}, expected lower-case letters, digits and hyphens, at most 40",
            hint="choose another name",
        ) from error
    grant = asyncio.run(_create(target, request))
    terminal = Terminal(answers=True)
    if as_json:
        terminal.json(grant.model_dump(mode="json"))
        return
    terminal.answer(grant.secret or "")
    terminal.say(f"token {grant.name} ({grant.role}) is shown this once; keep it secret")


async def _create(target: Target, request: object) -> TokenGrant:
    from bedstone.model.api import TokenRequest

    assert isinstance(request, TokenRequest)  # noqa: S101 - made above
    async with target.connect() as client:
        return await client.create_token(request)


@token.command(
    "list",
    context_settings=CONTEXT,
    help=teach(
        "List the credentials, without their secrets.",
        ("bedstone token list", "as a table"),
        ("bedstone token list -o json", "for programs"),
    ),
)
@targeted
@output_option
def list_(*, target: Target, as_json: bool) -> None:
    """See `bedstone token list --help`."""
    grants = asyncio.run(_list(target))
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json([grant.model_dump(mode="json", exclude={"secret"}) for grant in grants])
    elif grants:
        terminal.table(("NAME", "ROLE"), ((grant.name, grant.role) for grant in grants))
    else:
        terminal.complain("there is no token")


async def _list(target: Target) -> list[TokenGrant]:
    async with target.connect() as client:
        return await client.tokens()


@token.command(
    context_settings=CONTEXT,
    help=teach("Revoke a credential.", ("bedstone token delete ada", "at once, everywhere")),
)
@click.argument("name")
@targeted
def delete(*, name: str, target: Target) -> None:
    """See `bedstone token delete --help`."""
    asyncio.run(_delete(target, name))
    Terminal().say(f"token {name}: revoked")


async def _delete(target: Target, name: str) -> None:
    async with target.connect() as client:
        await client.delete_token(name)
