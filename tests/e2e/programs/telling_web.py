"""A web shop that tells of itself with the stock libraries, and sets none of them up."""

import json
import logging
import os

import httpx
from opentelemetry import metrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

log = logging.getLogger("shop")
meter = metrics.get_meter("shop")
sold = meter.create_counter("shop.sold", unit="{item}")
paid = meter.create_histogram("shop.paid", unit="s")


async def buy(request: Request) -> Response:
    log.info("sold", extra={"item": request.path_params["item"]})
    sold.add(2, {"kind": "book", "workload": "forged"})
    paid.record(0.3)
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://stock/take/{request.path_params['item']}")
    return PlainTextResponse(answer.text)


async def fail(_: Request) -> Response:
    raise ValueError("the till is empty")


async def say(request: Request) -> Response:
    """Send a log record over OTLP, as a library for logs does."""
    record = {
        "severityNumber": 17,
        "body": {"stringValue": "said over OTLP"},
        "traceId": request.query_params["trace"],
    }
    scopes = [{"scope": {"name": "library"}, "logRecords": [record]}]
    place = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(
            f"{place}/v1/logs",
            content=json.dumps({"resourceLogs": [{"scopeLogs": scopes}]}),
            headers={"content-type": "application/json"},
        )
    return PlainTextResponse(answer.text, answer.status_code)


async def healthz(_: Request) -> Response:
    return PlainTextResponse("ok")


app = Starlette(
    routes=[
        Route("/buy/{item}", buy, methods=["POST"]),
        Route("/fail", fail),
        Route("/say", say, methods=["POST"]),
        Route("/healthz", healthz),
    ]
)
