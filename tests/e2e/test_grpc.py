"""gRPC between workloads: through the proxy by CONNECT, and proxyless by `xds:///name`.

Both use the stock grpcio client and server, and nothing of Bedstone.
"""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

GREETER = """
import os, signal, threading
from concurrent import futures
import grpc

def greet(request, context):
    metadata = dict(context.invocation_metadata())
    remaining = context.time_remaining()
    caller = metadata.get("x-bedstone-caller", "")
    trace = metadata.get("traceparent", "")
    return f"{os.environ['BEDSTONE_INSTANCE']}|{caller}|{remaining is not None}|{trace}".encode()

handler = grpc.method_handlers_generic_handler(
    "greeter.Greeter", {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((handler,))
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
server.start()
signal.signal(signal.SIGTERM, lambda *_: server.stop(3))
server.wait_for_termination()
"""

CALLER = """
import json, os
import grpc

async def call(channel):
    method = channel.unary_unary("/greeter.Greeter/Greet")
    return (await method(b"", timeout=3, wait_for_ready=True)).decode()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    target = scope["path"].rpartition("/")[2]
    try:
        if scope["path"].startswith("/proxyless"):
            credentials = grpc.xds_channel_credentials()
            channel = grpc.aio.secure_channel(f"xds:///{target}", credentials)
        else:
            channel = grpc.aio.insecure_channel(f"{target}:80")
        async with channel:
            answers = [await call(channel) for _ in range(8)]
        body, status = json.dumps(answers).encode(), 200
    except grpc.aio.AioRpcError as error:
        body, status = f"{error.code().name}: {error.details()}".encode(), 502
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

MANIFEST = """
app: greetings
gateway: {port: 8080, routes: [{path: /, to: caller}]}
workloads:
  caller: {run: caller:app, uses: [greeter]}
  greeter: {command: [python, greeter.py], protocol: grpc, replicas: 2}
  secret: {command: [python, greeter.py], protocol: grpc}
"""


@pytest.fixture(scope="module", params=["auto", "never"])
def greetings(request: pytest.FixtureRequest, make_domain: Callable[..., Any]) -> Any:
    """The app, with identities enforced by network namespaces where possible, and without."""
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "greeter.py").write_text(GREETER)
    (domain.directory / "caller.py").write_text(CALLER)
    domain.up("--isolate", request.param)
    yield domain
    domain.down()


def ask(domain: Any, path: str) -> httpx.Response:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    return httpx.get(
        f"{domain.url}{path}", timeout=20, trust_env=False, headers={"traceparent": trace}
    )


@pytest.mark.parametrize("way", ["proxy", "proxyless"])
def test_a_stock_client_reaches_what_is_declared(greetings: Any, way: str) -> None:
    answer = ask(greetings, f"/{way}/greeter")
    assert answer.status_code == 200, f"{answer.text}\n{greetings.logs()}"
    instances, callers, deadlines, traces = zip(
        *(line.split("|") for line in answer.json()), strict=True
    )
    assert all(caller.endswith("/greetings/caller") for caller in callers), callers
    assert set(deadlines) == {"True"}
    assert all("0af7651916cd43dd8448eb211c80319c" in trace for trace in traces)
    assert len(set(instances)) == 2, "calls are spread over the instances"


@pytest.mark.parametrize("way", ["proxy", "proxyless"])
def test_a_stock_client_does_not_reach_what_is_not(greetings: Any, way: str) -> None:
    answer = ask(greetings, f"/{way}/secret")
    assert answer.status_code == 502
    assert "greetings" not in answer.text or "secret" in answer.text
