from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from bedstone.model.fields import NAME_PATTERN
from bedstone.model.manifest import parse_manifest
from bedstone.model.template import SAMPLE, SAMPLE_FILE, app_name, template


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("shop", "shop"),
        ("My Shop", "my-shop"),
        ("9lives", "lives"),
        ("a_b.c", "a-b-c"),
        ("-x-", "x"),
        ("", "app"),
        ("42", "app"),
        ("日本", "app"),
        ("server", "server-app"),
        ("x" * 60, "x" * 40),
        ("a" * 39 + "-b", "a" * 39),
    ],
)
def test_any_directory_gives_a_valid_name(text: str, name: str) -> None:
    assert app_name(text) == name
    assert re.fullmatch(NAME_PATTERN, name)
    assert parse_manifest(template(text)).spec.app == name


def test_what_the_template_shows_in_comments_is_valid_too() -> None:
    """Each commented key, taken out of its comment, is accepted."""
    text = re.sub(
        r"^( *)# (env:|  GREETING|path: web|prepare:)", r"\1\2", template("x"), flags=re.MULTILINE
    )
    text = re.sub(r"^# (databases:|  ledger)", r"\1", text, flags=re.MULTILINE)
    spec = parse_manifest(text, environ={}).spec
    web = spec.workloads["web"]
    assert web.env == {"GREETING": "${env.GREETING:-hello}"}
    assert (web.path, web.prepare) == ("web", ("python", "-m", "migrate"))
    assert set(spec.databases) == {"ledger"}


def test_the_sample_answers_what_the_template_asks_of_it() -> None:
    module, _, attribute = (
        parse_manifest(template("x")).spec.workloads["web"].run or ""
    ).partition(":")
    assert f"{module}.py" == SAMPLE_FILE
    names: dict[str, Any] = {}
    exec(compile(SAMPLE, SAMPLE_FILE, "exec"), names)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    asyncio.run(names[attribute]({"type": "http", "path": "/"}, receive, send))
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == b"hello from Bedstone\n"
