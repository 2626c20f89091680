"""OTLP over HTTP on a Unix socket of mode 0600: what instances send, through their proxy.

It follows the OTLP specification 1.x, "OTLP/HTTP": `POST /v1/traces`, `/v1/metrics`, `/v1/logs`;
binary protobuf or JSON; gzip or deflate; an answer in the encoding of the question, failures as
`google.rpc.Status`. 400 is for what can never be taken, 503 for what may be tried again.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from bedstone.errors import DeniedError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.node.collector.bounds import refuse_json, refuse_many
from bedstone.node.collector.intake import LARGEST, Intake, Sender
from bedstone.telemetry.context import SENDER

PROTOBUF, JSON = "application/x-protobuf", "application/json"
KEEP_ALIVE = 60
"""Seconds that an idle connection stays open; longer than the proxy keeps it."""
_STATUS = {"invalid": 400, "denied": 403, "not_found": 404, "unavailable": 503}
_RPC_CODE = {"invalid": 3, "denied": 7, "not_found": 5, "unavailable": 14}
_IDENTIFIERS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}
_HEX = re.compile(r"[0-9a-fA-F]*")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class OtlpHttp:
    """The ASGI application."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        again: list[tuple[bytes, bytes]] = []
        try:
            if scope["method"] != "POST":
                raise InvalidError(f"got {scope['method']}, expected POST")
            if kind not in (PROTOBUF, JSON):
                raise InvalidError(f"got the type {kind!r}, expected {PROTOBUF} or {JSON}")
            if SENDER not in headers:
                raise DeniedError("it did not come through an instance's proxy")
            sender = Sender.parse(headers[SENDER])
            packed = await self._read(str(sender), receive)
            with self._intake.shares.turn(str(sender)):
                body = unpacked(packed, headers.get("content-encoding", ""))
                status, answer = 200, self._take(scope["path"], sender, body, kind)
        except Error as error:
            status, answer = _failure(error)
            if isinstance(error, UnavailableError) and error.retry_after:
                again = [(b"retry-after", str(math.ceil(error.retry_after)).encode())]
        data = _encoded(answer, kind)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", (JSON if kind == JSON else PROTOBUF).encode()),
                    (b"content-length", str(len(data)).encode()),
                    *again,
                ],
            }
        )
        await send({"type": "http.response.body", "body": data})

    async def _read(self, sender: str, receive: Receive) -> bytes:
        """A body; what is received at the same time is bounded, whoever is slow."""
        shares = self._intake.shares
        parts, size = [], 0
        try:
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise InvalidError("the sender went away")
                part = event.get("body", b"")
                if size + len(part) > LARGEST:
                    raise InvalidError(f"the body is too large, expected at most {LARGEST} bytes")
                shares.receive(sender, len(part))
                size += len(part)
                parts.append(part)
                if not event.get("more_body"):
                    return b"".join(parts)
        finally:
            shares.received(sender, size)

    def _take(self, path: str, sender: Sender, body: bytes, kind: str) -> Any:
        match path:
            case "/v1/traces":
                from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

                request = decoded(trace.ExportTraceServiceRequest(), body, kind)
                dropped = self._intake.spans.spans(sender, request)
                spans = trace.ExportTracePartialSuccess(rejected_spans=dropped)
                return trace.ExportTraceServiceResponse(partial_success=spans if dropped else None)
            case "/v1/logs":
                from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs

                request = decoded(logs.ExportLogsServiceRequest(), body, kind)
                dropped = self._intake.logs.logs(sender, request)
                records = logs.ExportLogsPartialSuccess(rejected_log_records=dropped)
                return logs.ExportLogsServiceResponse(partial_success=records if dropped else None)
            case "/v1/metrics":
                from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics

                request = decoded(metrics.ExportMetricsServiceRequest(), body, kind)
                dropped = self._intake.metrics.metrics(sender, request)
                points = metrics.ExportMetricsPartialSuccess(rejected_data_points=dropped)
                return metrics.ExportMetricsServiceResponse(
                    partial_success=points if dropped else None
                )
            case _:
                raise NotFoundError(
                    f"there is no {path[:200]}, expected /v1/traces, /v1/metrics or /v1/logs"
                )


def unpacked(body: bytes, encoding: str) -> bytes:
    """A body as it was before `Content-Encoding`.

    Raises:
        InvalidError: it is not so encoded, or too large.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip":
            unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            unpacker = zlib.decompressobj()
        case other:
            raise InvalidError(f"got the encoding {other[:50]!r}, expected gzip or deflate")
    try:
        data = unpacker.decompress(body, LARGEST)
    except zlib.error as error:
        raise InvalidError(f"the body is not {encoding}: {error}") from error
    if unpacker.unconsumed_tail:
        raise InvalidError(f"the body is too large, expected at most {LARGEST} bytes unpacked")
    if not unpacker.eof:
        raise InvalidError(f"the body is not {encoding}: it ends too early")
    return data


def decoded(message: Any, body: bytes, kind: str) -> Any:
    """The message in a body.

    Raises:
        InvalidError: it is not one, or names too much.
    """
    from google.protobuf.json_format import ParseDict, ParseError
    from google.protobuf.message import DecodeError

    try:
        if kind == JSON:
            refuse_json(body)
            ParseDict(_with_bytes(json.loads(body)), message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(body)
    except (DecodeError, ParseError, ValueError, TypeError, RecursionError) as error:
        raise InvalidError(f"the body is no OTLP request: {error}") from error
    refuse_many(message)
    return message


def _with_bytes(value: Any, name: str = "") -> Any:
    """OTLP's JSON writes identifiers as hexadecimal digits, where protobuf's has base64."""
    match value:
        case dict():
            return {key: _with_bytes(item, key) for key, item in value.items()}
        case list():
            return [_with_bytes(item) for item in value]
        case str() if name in _IDENTIFIERS and _HEX.fullmatch(value) and len(value) % 2 == 0:
            return base64.b64encode(bytes.fromhex(value)).decode()
        case _:
            return value


def _failure(error: Error) -> tuple[int, Any]:
    from google.rpc.status_pb2 import Status

    code = _RPC_CODE.get(error.code, 13)
    return _STATUS.get(error.code, 500), Status(code=code, message=error.message)


def _encoded(message: Any, kind: str) -> bytes:
    if kind != JSON:
        return bytes(message.SerializeToString())
    from google.protobuf.json_format import MessageToDict

    return json.dumps(MessageToDict(message)).encode()


@contextlib.asynccontextmanager
async def serve(intake: Intake, path: Path) -> AsyncIterator[None]:
    """Serve while the context is entered.

    Raises:
        UnavailableError: the socket cannot be made.
    """
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are the agent's."""
            yield

    server = Server(
        uvicorn.Config(
            OtlpHttp(intake),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
        )
    )
    with _listening(path) as listener:
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A Unix socket; made under another name, so that it is never there with another mode."""
    draft = path.with_name(f".{path.name}")
    listener = socket.socket(socket.AF_UNIX)
    try:
        draft.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(draft))
        finally:
            os.umask(mask)
        listener.listen(128)
        draft.replace(path)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"the collector cannot listen on {path}: {error.strerror}"
        ) from error
    with listener:
        yield listener
