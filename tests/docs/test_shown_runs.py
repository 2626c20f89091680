"""What the README and the guide to gRPC show, run for real."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.testing.domain import Domain

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Domain]]:
    made: list[Domain] = []

    def make(source: Path | None = None, manifest: str = "") -> Domain:
        made.append(Domain.make(source, manifest))
        return made[-1]

    yield make
    try:
        for domain in made:
            domain.down()
    finally:
        for domain in made:
            domain.discard()


def test_the_readme_s_manifest_is_the_bank_s(blocks: Callable[[str], list[Any]]) -> None:
    from bedstone.model.manifest import load_manifest, parse_manifest

    (shown,) = [block for block in blocks("README.md") if block.language == "yaml"]
    assert parse_manifest(shown.text).spec == load_manifest(ROOT / "examples/bank").spec


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")
def test_the_readme_s_minute(
    make: Callable[..., Domain], blocks: Callable[[str], list[Any]]
) -> None:
    bank = make(ROOT / "examples/bank")
    bank.up()
    customers, operators = [b for b in blocks("README.md") if b.language == "console"][1:3]
    ids: dict[str, str] = {}
    for command, (shown, *_) in customers.commands():
        here = command.replace("localhost:8080", bank.url.removeprefix("http://"))
        for old, new in ids.items():
            here = here.replace(old, new)
        answer = json.loads(subprocess.check_output(["sh", "-c", f"{here} -s"], timeout=30))
        expected = json.loads(shown)
        assert answer.keys() == expected.keys()
        ids[expected["id"]] = answer["id"]
        same = {"owner", "balance", "amount"} & answer.keys()
        assert {k: answer[k] for k in same} == {k: expected[k] for k in same}
    assert len(ids) == 3
    for command, _ in operators.commands():
        words = command.partition(" #")[0].replace(" -f", "").split()[1:]
        if words == ["down"]:
            continue  # at the end
        done = bank.run(*words)
        assert done.returncode == (1 if "risk" in words else 0), done.stderr
        if "risk" in words:
            assert "does not declare" in done.stdout


WEB = """
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route
import proxied, proxyless

async def hello(request):
    client = {"proxied": proxied, "proxyless": proxyless}[request.path_params["how"]]
    return Response(await run_in_threadpool(client.hello, b"ann"))

app = Starlette(routes=[Route("/{how}", hello)])
"""


def test_the_guide_to_grpc(make: Callable[..., Domain], blocks: Callable[[str], list[Any]]) -> None:
    manifest, server, proxied, proxyless = blocks("docs/how-to/grpc.md")
    domain = make(manifest=manifest.text)
    for name, text in (
        ("greeter.py", server.text),
        ("proxied.py", proxied.text),
        ("proxyless.py", proxyless.text),
        ("web.py", WEB),
    ):
        (domain.directory / name).write_text(text)
    domain.ok("up", "--detach", "--wait")
    for how in ("proxied", "proxyless"):
        answer = domain.ok("call", f"web/{how}")
        assert re.fullmatch(r"hello ann, called by spiffe://[^/]+/demo/web\s*", answer)
