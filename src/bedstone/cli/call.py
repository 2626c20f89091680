"""`bedstone call`: one HTTP request to a workload, through the mesh, as curl would write it."""

from __future__ import annotations

import asyncio
import base64
import http
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bedstone.cli.failures import Failed
from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, clean
from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from bedstone.model.api import CallRequest, CallResult


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Send one HTTP request to a workload through the mesh.\n\n"
        "It goes the way that a workload's own request goes, with the identity of an operator, or "
        "of the workload given by --as: what that may not reach is refused. The exit status is 1 "
        "for an answer of 400 or above. With -o json, the body is `body` where it is UTF-8, else "
        "`body_base64`.",
        ("bedstone call accounts/healthz", "GET /healthz of workload accounts"),
        ('bedstone call accounts/accounts -d \'{"id": "ada"}\'', "POST some JSON"),
        ("bedstone call risk/check --as accounts -i", "as accounts would, with status and headers"),
    ),
)
@click.argument("workload", metavar="WORKLOAD[/PATH]")
@click.option("-X", "--request", "method", metavar="METHOD", help="Default: GET, or POST with -d.")
@click.option("-d", "--data", metavar="DATA", help="The body; @FILE or @- reads it.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="A header.")
@click.option("--as", "identity", default="operator", metavar="WORKLOAD", help="Who calls.")
@click.option("-i", "--include", is_flag=True, help="Also show the status and the headers.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
)
@app_option
@targeted
@output_option
def call(
    *,
    workload: str,
    method: str | None,
    data: str | None,
    headers: tuple[str, ...],
    identity: str,
    include: bool,
    timeout: float,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone call --help`."""
    from bedstone.model.api import CallRequest

    name, slash, path = workload.partition("/")
    body = read_body(data)
    request = CallRequest(
        path=slash + path or "/",
        method=(method or ("GET" if data is None else "POST")).upper(),
        headers=parse_headers(headers, body),
        body=base64.b64encode(body or b"").decode(),
        identity=identity,
        timeout=timeout,
    )
    result = asyncio.run(_call(target, app, name, request))
    if as_json:
        Terminal(answers=True).json(document(result))
    else:
        write(result, include=include)
    if result.status >= 400:
        raise Failed(1)


async def _call(target: Target, named: str | None, name: str, request: CallRequest) -> CallResult:
    async with target.connect() as client:
        return await client.call(await choose_app(client, target, named), name, request)


def read_body(data: str | None) -> bytes | None:
    """The bytes that `-d` means."""
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise InvalidError(
            f"cannot read the body in {data[1:]}: {error.strerror}", hint="correct -d @FILE"
        ) from error


def parse_headers(headers: tuple[str, ...], body: bytes | None) -> tuple[tuple[str, str], ...]:
    """Headers as pairs; a body without a type is JSON if it looks so, else a form as curl's."""
    pairs = []
    for text in headers:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or "\n" in text or "\r" in text:
            raise InvalidError(f"got the header {text!r}, expected NAME: VALUE", hint="correct -H")
        pairs.append((name.strip().lower(), value.strip()))
    if body is not None and all(name != "content-type" for name, _ in pairs):
        json_like = body.lstrip()[:1] in (b"{", b"[")
        kind = "application/json" if json_like else "application/x-www-form-urlencoded"
        pairs.append(("content-type", kind))
    return tuple(pairs)


def document(result: CallResult) -> dict[str, Any]:
    """The answer for programs: the body as text where it is UTF-8, else as base64."""
    found = result.model_dump(mode="json", exclude={"body"})
    try:
        found["body"] = base64.b64decode(result.body).decode()
    except UnicodeDecodeError:
        found["body_base64"] = result.body
    return found


def write(result: CallResult, *, include: bool) -> None:
    """The answer: its body, byte for byte, and what goes before it."""
    terminal = Terminal()
    line = f"HTTP {result.status} {_phrase(result.status)}".rstrip()
    if include:
        terminal.answer(line)
        for name, value in result.headers:
            terminal.answer(f"{clean(name)}: {clean(value)}")
        terminal.answer("")
    body = base64.b64decode(result.body)
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    if body and not body.endswith(b"\n") and sys.stdout.isatty():
        terminal.answer("")
    sys.stdout.flush()
    if not include and result.status >= 400:
        terminal.complain(line)


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
