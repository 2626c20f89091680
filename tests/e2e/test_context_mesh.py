"""Context across services that meet through the mesh: kept, bounded, and not to be forged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(180)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

MANIFEST = """
app: context
gateway:
  routes:
    - {path: /stuck, to: front, timeout: 500ms}
    - {path: /, to: front}
workloads:
  front: {run: link:app, uses: [back]}
  back: {run: link:app}
"""

LINK = """
import asyncio, os
import aiohttp, httpx, requests
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from bedstone.runtime import current

def seen():
    c = current()
    return {"trace": c.trace_id, "transaction": c.transaction, "shard_key": c.shard_key,
            "caller": c.caller, "remaining": c.remaining()}

async def by_httpx(path):
    async with httpx.AsyncClient(timeout=None) as client:
        return (await client.get("http://back" + path)).json()

async def by_requests(path):
    return await asyncio.to_thread(lambda: requests.get("http://back" + path).json())

async def by_aiohttp(path):
    async with aiohttp.ClientSession() as session:
        async with session.get(os.environ["BACK_URL"] + path) as answer:
            return await answer.json()

CLIENTS = {"httpx": by_httpx, "requests": by_requests, "aiohttp": by_aiohttp}

async def here(request):
    return JSONResponse(seen())

async def both(request):
    before = seen()
    return JSONResponse([before, await CLIENTS[request.path_params["how"]]("/here")])

async def stuck(request):
    return JSONResponse(await CLIENTS[request.path_params["how"]]("/hang"))

async def hang(request):
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        print("hang was cancelled", flush=True)
        raise

app = Starlette(routes=[Route("/here", here), Route("/both/{how}", both),
                        Route("/stuck/{how}", stuck),
                        Route("/relay/{how}", stuck), Route("/hang", hang)])
"""

CLIENTS = ["httpx", "requests", "aiohttp"]


@pytest.fixture(scope="module")
def app(make_domain: Callable[..., Any]) -> Any:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "link.py").write_text(LINK)
    domain.up()
    return domain


@pytest.mark.parametrize("how", CLIENTS)
def test_context_crosses_the_mesh(app: Any, how: str) -> None:
    front, back = json.loads(
        app.ok(
            "call",
            f"front/both/{how}",
            *("-H", f"traceparent: {TRACEPARENT}"),
            *("-H", "x-bedstone-transaction: tx-1"),
            *("-H", "x-bedstone-shard-key: ann"),
            *("-H", "x-envoy-upstream-rq-timeout-ms: 60000"),
        )
    )
    for link in (front, back):
        assert (link["trace"], link["transaction"], link["shard_key"]) == (TRACE, "tx-1", "ann")
    assert front["caller"].endswith("/context/operator")
    assert back["caller"].endswith("/context/front")
    assert 40 < back["remaining"] <= front["remaining"] + 0.001 <= 60.001


def test_nobody_outside_sets_what_is_internal(app: Any) -> None:
    answer = httpx.get(
        f"{app.url}/both/httpx",
        headers={
            "traceparent": TRACEPARENT,
            "x-bedstone-transaction": "forged",
            "x-bedstone-shard-key": "forged",
            "x-bedstone-caller": "spiffe://forged/context/front",
            "x-envoy-upstream-rq-timeout-ms": "1",
            "x-envoy-expected-rq-timeout-ms": "1",
        },
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    front, back = answer.json()
    for link in (front, back):
        assert (link["transaction"], link["shard_key"]) == (None, None)
        assert link["trace"] == TRACE
        assert link["remaining"] > 10
    assert front["caller"].endswith("/context/gateway")


@pytest.mark.parametrize("how", ["httpx", "aiohttp"])
def test_a_routes_deadline_cancels_the_last_service(app: Any, how: str) -> None:
    def cancelled() -> int:
        return int(app.ok("logs", "back").count("hang was cancelled"))

    before = cancelled()
    answer = httpx.get(f"{app.url}/stuck/{how}", timeout=20, trust_env=False)
    assert answer.status_code == 504
    assert answer.headers["x-bedstone-outcome"] == "unknown"
    assert answer.elapsed.total_seconds() < 15, "nobody answers for 30 s"
    app.wait(lambda: cancelled() > before, timeout=20, what="the hanging handler is cancelled")


def test_a_client_that_leaves_cancels_the_last_service(app: Any) -> None:
    """`/hang` itself has no deadline here but the mesh's own of a minute."""
    before = app.ok("logs", "back").count("hang was cancelled")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{app.url}/relay/httpx", timeout=0.5, trust_env=False)
    app.wait(
        lambda: app.ok("logs", "back").count("hang was cancelled") > before,
        timeout=5,
        what="the hanging handler is cancelled",
    )
