"""Context through a chain of real processes A → B → C, with each client library, without a mesh."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

# No line of this knows of Bedstone but `seen`, which reports.
LINK = '''
import asyncio, os, time
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
import aiohttp, grpc, grpc.aio, httpx, requests
from bedstone.runtime import current, deadline

NEXT = os.environ.get("NEXT", "")
GRPC = os.environ.get("GRPC", "")
MARK = Path(os.environ["MARK"])


def seen():
    context = current()
    return {
        "name": MARK.name,
        "trace": context.trace_id,
        "transaction": context.transaction,
        "shard_key": context.shard_key,
        "remaining": context.remaining(),
    }


async def by_httpx(path):
    async with httpx.AsyncClient(timeout=None) as client:
        return (await client.get(NEXT + path)).json()


def by_httpx_blocking(path):
    return httpx.get(NEXT + path, timeout=None).json()


def by_requests(path):
    return requests.get(NEXT + path).json()


async def by_aiohttp(path):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.get(NEXT + path) as answer:
            return await answer.json()


def decode(data):
    import json
    return json.loads(data)


async def by_grpc_aio(path):
    async with grpc.aio.insecure_channel(GRPC) as channel:
        return decode(await channel.unary_unary("/chain.Chain" + path)(b""))


def by_grpc(path):
    with grpc.insecure_channel(GRPC) as channel:
        return decode(channel.unary_unary("/chain.Chain" + path)(b""))


def by_grpc_stream(path):
    with grpc.insecure_channel(GRPC) as channel:
        return decode(b"".join(channel.unary_stream("/chain.Chain" + path + "Stream")(b"")))


CLIENTS = {f.__name__[3:]: f for f in (
    by_httpx, by_httpx_blocking, by_requests, by_aiohttp, by_grpc, by_grpc_aio, by_grpc_stream
)}


async def call(how, path):
    client = CLIENTS[how]
    if asyncio.iscoroutinefunction(client):
        return await client(path)
    return await asyncio.to_thread(client, path)


async def chain(request):
    how = request.path_params["how"]
    answer = {"here": seen()}
    if NEXT:
        answer["next"] = await call(how, "/grpc" if how.startswith("grpc") else f"/chain/{how}")
    return JSONResponse(answer)


async def stuck(request):
    """The last of the chain hangs; who is stopped leaves a mark."""
    how = request.path_params["how"]
    try:
        if NEXT:
            return JSONResponse(
                await call(how, "/Stuck" if how.startswith("grpc") else f"/stuck/{how}")
            )
        await asyncio.sleep(30)
        return JSONResponse({})
    except BaseException as error:  # aiohttp's own time-out may win by a hair over our cancellation
        if NEXT or isinstance(error, asyncio.CancelledError):
            MARK.with_suffix(".cancelled").write_text("")
        raise


async def late(request):
    """A call made when the deadline has passed."""
    how = request.path_params["how"]
    with deadline(0.01):
        await asyncio.sleep(0.02)
        try:
            await call(how, "/Touch" if how.startswith("grpc") else "/touch")
        except BaseException as error:
            name = type(error).__name__
            return JSONResponse({"error": name, "timeout": isinstance(error, TimeoutError)})
    return JSONResponse({"error": None})


async def clipped(request):
    """A call that asks for no time-out of its own, to somebody who never answers."""
    how = request.path_params["how"]
    begin = time.monotonic()
    with deadline(0.3):
        try:
            await call(how, "/Stuck" if how.startswith("grpc") else "/stuck/httpx")
        except Exception:
            pass  # or the callee, which knows the deadline too, was first to answer
    return JSONResponse({"seconds": time.monotonic() - begin})


async def touch(request):
    MARK.with_suffix(".touched").write_text("")
    return JSONResponse({})


def blocking(request):
    return JSONResponse(seen())


async def slow(request):
    await asyncio.sleep(1)
    return JSONResponse({"finished": True})


app = Starlette(routes=[
    Route("/chain/{how}", chain), Route("/stuck/{how}", stuck), Route("/late/{how}", late),
    Route("/clipped/{how}", clipped), Route("/touch", touch), Route("/blocking", blocking),
    Route("/slow", slow),
])
'''

GRPC_SERVER = """
import asyncio, json, os
from pathlib import Path
import grpc.aio

MARK = Path(os.environ["MARK"])

class Chain(grpc.GenericRpcHandler):
    def service(self, details):
        method = details.method.rpartition("/")[2]
        if method.startswith("Touch"):
            MARK.with_suffix(".touched").write_text("")
        if method.endswith("Stream"):
            return grpc.unary_stream_rpc_method_handler(self.stream)
        return grpc.unary_unary_rpc_method_handler(self.stuck if method == "Stuck" else self.echo)

    async def echo(self, request, context):
        metadata = dict(context.invocation_metadata())
        return json.dumps({"here": {
            "name": "grpc",
            "trace": metadata.get("traceparent", "").split("-")[1],
            "transaction": metadata.get("x-bedstone-transaction"),
            "shard_key": metadata.get("x-bedstone-shard-key"),
            "remaining": context.time_remaining(),
        }}).encode()

    async def stream(self, request, context):
        yield await self.echo(request, context)

    async def stuck(self, request, context):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            MARK.with_suffix(".cancelled").write_text("")
            raise

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Chain(),))
    server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""

HTTP_CLIENTS = ["httpx", "httpx_blocking", "requests", "aiohttp"]
GRPC_CLIENTS = ["grpc", "grpc_aio", "grpc_stream"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _running(
    arguments: list[str], folder: Path, port: int, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PORT": str(port), **env}
    )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, f"{arguments} ended with {process.returncode}"
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(15)


@dataclass
class Chain:
    url: str
    folder: Path
    first: subprocess.Popen[bytes]

    def get(self, path: str, **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(self.url + path, headers=names, timeout=20, trust_env=False)

    def mark(self, name: str, *, within: float = 15.0) -> bool:
        """Whether a process left that mark; takes it away."""
        path = self.folder / name
        end = time.monotonic() + within
        while time.monotonic() < end:
            if path.exists():
                path.unlink()
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "link.py").write_text(LINK)
    (folder / "grpc_server.py").write_text(GRPC_SERVER)
    a, b, c, g = (_free_port() for _ in range(4))
    serve = ["-m", "bedstone.runtime.serve", "link:app"]
    grpc = f"127.0.0.1:{g}"
    with ExitStack() as stack:
        first = None
        for name, port, following in (("c", c, 0), ("b", b, c), ("a", a, b)):
            first = stack.enter_context(
                _running(
                    serve,
                    folder,
                    port,
                    MARK=str(folder / name),
                    NEXT=f"http://127.0.0.1:{following}" if following else "",
                    GRPC=grpc,
                    NO_PROXY="127.0.0.1",
                )
            )
        stack.enter_context(_running(["grpc_server.py"], folder, g, MARK=str(folder / "g")))
        assert first is not None
        yield Chain(f"http://127.0.0.1:{a}", folder, first)


def _links(answer: dict[str, Any]) -> list[dict[str, Any]]:
    found = [answer["here"]]
    while "next" in answer:
        answer = answer["next"]
        found.append(answer["here"])
    return found


@pytest.mark.parametrize("how", HTTP_CLIENTS + GRPC_CLIENTS)
def test_context_reaches_the_end_of_the_chain(chain: Chain, how: str) -> None:
    answer = chain.get(
        f"/chain/{how}",
        traceparent=TRACEPARENT,
        x_bedstone_transaction="tx-1",
        x_bedstone_shard_key="ann",
        x_envoy_expected_rq_timeout_ms="60000",
    )
    assert answer.status_code == 200, answer.text
    links = _links(answer.json())
    assert [link["name"] for link in links] == (["a", "grpc"] if "grpc" in how else ["a", "b", "c"])
    assert {link["trace"] for link in links} == {TRACE}
    assert {link["transaction"] for link in links} == {"tx-1"}
    assert {link["shard_key"] for link in links} == {"ann"}
    left = [link["remaining"] for link in links]
    # gRPC rounds a deadline up when it puts it on the wire (gRPC over HTTP/2: TimeoutValue).
    assert all(later <= earlier + 0.05 for earlier, later in pairwise(left)), left
    assert 40 < left[-1] < left[0] <= 60


def test_a_chain_without_context_shares_a_new_trace(chain: Chain) -> None:
    links = _links(chain.get("/chain/httpx", traceparent="rubbish").json())
    assert len({link["trace"] for link in links}) == 1
    assert links[0]["trace"] != TRACE
    assert [link["remaining"] for link in links] == [None] * 3


def test_blocking_handlers_see_the_context(chain: Chain) -> None:
    seen = chain.get("/blocking", x_bedstone_shard_key="ann", traceparent=TRACEPARENT).json()
    assert (seen["shard_key"], seen["trace"]) == ("ann", TRACE)


@pytest.mark.parametrize("how", ["httpx", "aiohttp"])
def test_a_deadline_cancels_work_down_the_chain(chain: Chain, how: str) -> None:
    begin = time.monotonic()
    answer = chain.get(f"/stuck/{how}", x_envoy_expected_rq_timeout_ms="500")
    assert 0.4 < time.monotonic() - begin < 15, "nobody answers for 30 s"
    assert answer.status_code == 504
    assert answer.headers["x-bedstone-outcome"] == "unknown"
    assert chain.mark("c.cancelled")
    assert chain.mark("b.cancelled")


@pytest.mark.parametrize("how", GRPC_CLIENTS[:2])
def test_a_deadline_cancels_a_grpc_call(chain: Chain, how: str) -> None:
    answer = chain.get(f"/stuck/{how}", x_envoy_expected_rq_timeout_ms="500")
    assert answer.status_code in {500, 504}  # grpc's own deadline may be a moment earlier
    assert chain.mark("g.cancelled")


def test_a_client_that_goes_away_cancels_work_down_the_chain(chain: Chain) -> None:
    (chain.folder / "a.cancelled").unlink(missing_ok=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{chain.url}/stuck/httpx", timeout=0.3, trust_env=False)
    assert [chain.mark(f"{name}.cancelled") for name in "abc"] == [True, True, True]


@pytest.mark.parametrize("how", HTTP_CLIENTS + GRPC_CLIENTS)
def test_a_call_after_the_deadline_is_not_sent(chain: Chain, how: str) -> None:
    answer = chain.get(f"/late/{how}").json()
    assert answer == {"error": "DeadlineExceededError", "timeout": True}
    assert not chain.mark("g.touched" if "grpc" in how else "b.touched", within=0.1)


@pytest.mark.parametrize("how", HTTP_CLIENTS + GRPC_CLIENTS[:2])
def test_a_call_takes_no_longer_than_what_remains(chain: Chain, how: str) -> None:
    # Nobody answers for 30 s.
    assert 0.2 < chain.get(f"/clipped/{how}").json()["seconds"] < 15


def test_a_stop_finishes_what_is_in_flight(chain: Chain) -> None:
    port = _free_port()
    serve = ["-m", "bedstone.runtime.serve", "link:app"]
    with (
        _running(serve, chain.folder, port, MARK=str(chain.folder / "d")) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        url = f"http://127.0.0.1:{port}/slow"
        answer = pool.submit(httpx.get, url, timeout=10, trust_env=False)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert answer.result().json() == {"finished": True}
        assert process.wait(5) == 0
