"""Spans a second through each stage of a trace's way, and what a span takes on disk.

The stages, each alone on one core: `collect` (a proxy's spans over gRPC on a Unix socket, made ours
and packed for the server), `sample` (unpacked, held, decided: all fail, so all are kept), `write`
(put together, compressed, written and flushed to SQLite). The baseline of each is what cannot be
avoided: for `collect` the same gRPC calls with nothing done, for `sample` protobuf's own parsing,
for `write` the same bytes inserted uncompressed. Traces have the eight spans of four hops.

    python benchmarks/traces.py [--traces 2000] [--rounds 5]

Prints JSON: spans a second (medians), ratios to the baseline, bytes a span, and how long searches
of what was written take.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sqlite3
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bedstone.control.monitoring.traces.sampler import Limits, TailSampler
from bedstone.control.monitoring.traces.spans import decode
from bedstone.control.monitoring.traces.store import Query, TraceStore
from bedstone.model.messages import Spans
from bedstone.node.collector import otlp_grpc
from bedstone.node.collector.intake import Discard, Intake
from bedstone.node.collector.outgoing import Outgoing

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
HOPS = (
    ("gateway/bank", "to/bank/default/gateway/web", "/transfers"),
    ("inbound/bank/default/web/web-1", "program/bank/default/web/web-1", "/transfers"),
    ("outbound/bank/default/web/web-1", "to/bank/default/web/risk", "/assess"),
    ("inbound/bank/default/risk/risk-1", "program/bank/default/risk/risk-1", "/assess"),
    ("outbound/bank/default/web/web-1", "to/bank/default/web/accounts", "/transfers/{}"),
    ("inbound/bank/default/accounts/a-1", "program/bank/default/accounts/a-1", "/transfers/{}"),
    ("outbound/bank/default/accounts/a-1", "to/bank/default/accounts/risk", "/limits"),
    ("inbound/bank/default/risk/risk-1", "program/bank/default/risk/risk-1", "/limits"),
)


def as_sent(traces: int) -> list[bytes]:
    """Requests of 64 spans, as the proxy sends them."""
    found, request = [], ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    for number in range(traces):
        trace, parent = os.urandom(16), b""
        for depth, (hop, cluster, path) in enumerate(HOPS):
            span: Any = scope.spans.add(
                trace_id=trace,
                span_id=os.urandom(8),
                parent_span_id=parent,
                name="ingress",
                start_time_unix_nano=now + number * 1_000 + depth,
                end_time_unix_nano=now + number * 1_000 + 20_000_000 - depth,
            )
            parent = span.span_id
            for key, text in (
                ("node_id", "local"),
                ("http.url", f"http://bank.example{path.format(os.urandom(16).hex())}?a=1"),
                ("http.method", "POST"),
                ("user_agent", "python-httpx/0.28.1"),
                ("http.protocol", "HTTP/2"),
                ("peer.address", "127.0.0.1"),
                ("request_size", "105"),
                ("response_size", "149"),
                ("component", "proxy"),
                ("upstream_cluster", cluster),
                ("upstream_cluster.name", cluster),
                ("http.status_code", "503"),
                ("response_flags", "-"),
                ("bedstone.hop", hop),
                ("bedstone.caller", "spiffe://bank.internal/bank/web"),
            ):
                span.attributes.add(key=key).value.string_value = text
        if len(scope.spans) >= 64:
            found.append(request.SerializeToString())
            request = ExportTraceServiceRequest()
            scope = request.resource_spans.add().scope_spans.add()
    return [*found, request.SerializeToString()]


async def over_grpc(handler: str, sent: list[bytes], directory: Path) -> tuple[float, list[Spans]]:
    """Seconds of this process for a stream of requests, and what it sends on."""
    packed: list[Spans] = []

    async def drained() -> None:
        """Nothing is slow."""

    def keep(message: Spans) -> bool:
        packed.append(message)
        return True

    outgoing = Outgoing(keep, drained, room=1 << 30)
    path = directory / f"{handler}.sock"
    if handler == "ours":
        server = await otlp_grpc.serve(Intake(outgoing, Discard(), Discard()), path)
    else:

        async def nothing(_request: bytes, _context: Any) -> bytes:
            return ExportTraceServiceResponse().SerializeToString()

        server = grpc.aio.server()
        method: Any = grpc.unary_unary_rpc_method_handler(nothing)
        service, _, name = EXPORT.strip("/").partition("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: method}),)
        )
        server.add_insecure_port(f"unix:{path}")
        await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary(EXPORT)
        await call(sent[0])
        begun = time.process_time()
        for request in sent[1:]:
            await call(request)
        task = asyncio.ensure_future(outgoing.run())
        while outgoing.waiting:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        used = time.process_time() - begun
        task.cancel()
    await server.stop(0)
    return used, packed


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and what came of it."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def inserted(path: Path, bodies: list[bytes]) -> None:
    """The least that keeps these bytes: one table, one transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (body BLOB)")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (?)", ((body,) for body in bodies))
    connection.execute("COMMIT")
    connection.close()


def one_round(traces: int) -> dict[str, float]:
    """Every stage once."""
    sent = as_sent(traces)
    count = traces * len(HOPS)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bs-") as name:
        directory = Path(name)
        least, _ = asyncio.run(over_grpc("nothing", sent, directory))
        used, packed = asyncio.run(over_grpc("ours", sent, directory))
        found |= {"collect": count / used, "collect_ratio": used / least}
        found["bytes_to_server"] = sum(len(message.body) for message in packed) / count
        bodies = [zlib.decompress(base64.b64decode(message.body)) for message in packed]
        least, _ = timed(lambda: [ExportTraceServiceRequest.FromString(b) for b in bodies])
        sampler = TailSampler(Limits())

        def sampled() -> Any:
            for body in bodies:
                sampler.offer(decode(body, "local"), 0.0)
            return sampler.due(10.0)

        used, decided = timed(sampled)
        assert len(decided) == traces
        found |= {"sample": count / used, "sample_ratio": used / least}
        raw = [b"".join(s.data.SerializeToString() for s in one.spans) for one in decided]
        found["bytes_raw"] = sum(map(len, raw)) / count
        least, _ = timed(lambda: inserted(directory / "least.sqlite", raw))
        store = TraceStore(directory / "traces.sqlite")
        used, _ = timed(lambda: store.write(decided, time.time()))
        found |= {"write": count / used, "write_ratio": used / least}
        begun = time.perf_counter()
        store.search(Query(app="bank", errors=True, service="risk", limit=100))
        found["search_ms"] = (time.perf_counter() - begun) * 1000
        begun = time.perf_counter()
        store.get(decided[traces // 2].trace.hex())
        found["get_ms"] = (time.perf_counter() - begun) * 1000
        store.close()
        with sqlite3.connect(directory / "traces.sqlite") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        found["bytes_on_disk"] = (directory / "traces.sqlite").stat().st_size / count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [one_round(options.traces) for _ in range(options.rounds)]
    medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
