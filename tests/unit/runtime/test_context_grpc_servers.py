"""Real grpcio clients and servers: a call's context is where its handler runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import asyncio, json, sys
from concurrent.futures import ThreadPoolExecutor
from bedstone.runtime import current, instrument, with_transaction, deadline

instrument()
import grpc, grpc.aio

def seen():
    context = current()
    return f"{context.transaction} {context.remaining() is not None}".encode()

class Blocking:
    def one(self, request, servicer):
        return seen()
    def many(self, request, servicer):
        yield seen()
        yield seen()

class Async:
    async def one(self, request, servicer):
        await asyncio.sleep(0)
        return seen()
    async def many(self, request, servicer):
        yield seen()
        await asyncio.sleep(0)
        yield seen()

def handlers(service):
    return grpc.method_handlers_generic_handler("s.S", {
        "One": grpc.unary_unary_rpc_method_handler(service.one),
        "Many": grpc.unary_stream_rpc_method_handler(service.many),
        "OneOf": grpc.stream_unary_rpc_method_handler(service.one),
        "ManyOf": grpc.stream_stream_rpc_method_handler(service.many),
    })

def call(port):
    """Every kind of call, inside a transaction, then outside of one."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        def each():
            return [
                channel.unary_unary("/s.S/One")(b"", timeout=20).decode(),
                [it.decode() for it in channel.unary_stream("/s.S/Many")(b"", timeout=20)],
                channel.stream_unary("/s.S/OneOf")(iter([b""]), timeout=20).decode(),
                [it.decode() for it in channel.stream_stream("/s.S/ManyOf")(iter([b""]))],
            ]
        with with_transaction("x-1"):
            inside = each()
        try:
            channel.unary_unary("/s.S/None")(b"", timeout=20)
        except grpc.RpcError as error:
            return [inside, each(), error.code().name]

def blocking():
    server = grpc.server(ThreadPoolExecutor(2), (handlers(Blocking()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        return call(port)
    finally:
        server.stop(None).wait()

async def asynchronous(service):
    server = grpc.aio.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handlers(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await asyncio.to_thread(call, port)
    finally:
        await server.stop(None)

which = sys.argv[1]
print(json.dumps(blocking() if which == "blocking" else asyncio.run(
    asynchronous(Async() if which == "async" else Blocking())
)))
'''


@pytest.mark.parametrize("server", ["blocking", "async", "migrated"])
def test_a_call_is_served_in_its_context(server: str, tmp_path: Path) -> None:
    """`migrated` is a blocking service in an asyncio server."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), server],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    inside, outside, unknown = json.loads(done.stdout)
    one = "x-1 True"
    assert inside == [one, [one, one], one, ["x-1 False", "x-1 False"]]
    nothing = "None True"
    assert outside == [nothing, [nothing, nothing], nothing, ["None False", "None False"]]
    assert unknown == "UNIMPLEMENTED"
