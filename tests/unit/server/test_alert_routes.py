"""The API of alerts: who may do what, what it shows, and Prometheus's words for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from fastapi import FastAPI

from bedstone.errors import InvalidError
from bedstone.model.api import TokenRequest
from bedstone.server.alert_routes import alert_routes
from bedstone.server.api import build_api
from bedstone.store import open_store
from bedstone.testing.alerts import AlertWorld

TEXT = """\
app: shop
workloads: {web: {command: [x], replicas: 0}}
alerts:
  slow: {when: latency > 1, for: 2s, severity: page, labels: {team: money}}
  odd: {when: broken}
"""
WEB = (("workload", "web"),)
Ask = Callable[..., Awaitable[httpx.Response]]


def with_api(body: Callable[[AlertWorld, Ask], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            world = AlertWorld(store, TEXT)
            world.evaluator.say("broken", InvalidError("not understood"))
            async with world.running() as alerting:
                nothing: Any = None
                routes = [alert_routes(alerting)]
                api: FastAPI = build_api(store, nothing, world.changes, nothing, routes)
                grant = await world.changes.grant(TokenRequest(name="r", role="reader"), "t")

                async def ask(
                    method: str, path: str, *, reader: bool = False, **more: Any
                ) -> httpx.Response:
                    peer = ("192.0.2.1" if reader else "local:0", 0)
                    headers = {"Authorization": f"Bearer {grant.secret}"} if reader else {}
                    transport = httpx.ASGITransport(app=api, client=peer)
                    async with httpx.AsyncClient(
                        transport=transport, base_url="http://api", headers=headers
                    ) as client:
                        return await client.request(method, path, **more)

                await body(world, ask)
            await world.close()

    asyncio.run(main())


def test_alerts_are_listed_with_those_that_fire_first() -> None:
    async def body(world: AlertWorld, ask: Ask) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        await world.seconds(3)
        found = (await ask("GET", "/v1/alerts", reader=True)).json()
        assert found["second"] == world.reader.last()
        queries = {item["rule"]: item["query"] for item in found["items"]}
        assert queries["slow"] == "latency", "what the rule compares, for its course"
        assert queries["workload-not-ready"] == "", "it is no PromQL"
        first, second, *rest = found["items"]
        assert (first["rule"], first["state"], first["severity"]) == ("slow", "firing", "page")
        assert first["labels"] == {"workload": "web", "team": "money"}
        assert first["summary"] == "latency > 1"
        assert (second["rule"], second["state"]) == ("odd", "unknown")
        assert second["error"] == "not understood"
        assert {line["state"] for line in rest} == {"inactive"}

    with_api(body)


def test_a_reader_sees_and_only_an_operator_silences() -> None:
    async def body(world: AlertWorld, ask: Ask) -> None:
        wanted = {"labels": {"rule": "slow"}, "seconds": 60, "why": "known"}
        refused = await ask("POST", "/v1/silences", reader=True, json=wanted)
        assert refused.status_code == 403
        made = (await ask("POST", "/v1/silences", json=wanted)).json()
        assert made["who"].startswith("local:")
        listed = (await ask("GET", "/v1/silences", reader=True)).json()["items"]
        assert [silence["id"] for silence in listed] == [made["id"]]
        path = f"/v1/silences/{made['id']}"
        assert (await ask("DELETE", path, reader=True)).status_code == 403
        assert (await ask("DELETE", path)).json() == {"deleted": made["id"]}
        assert (await ask("DELETE", path)).status_code == 404
        audit = {entry.action for entry in await world.changes.audit(10)}
        assert audit >= {"silence", "unsilence"}
        mistakes: list[dict[str, Any]] = [
            {"labels": {}},
            {"seconds": 0},
            {"seconds": 31 * 86400},
            {"why": ""},
        ]
        for wrong in mistakes:
            bad = await ask("POST", "/v1/silences", json=wanted | wrong)
            assert bad.status_code == 422

    with_api(body)


def test_a_rule_is_tried_without_a_change() -> None:
    async def body(world: AlertWorld, ask: Ask) -> None:
        world.evaluator.say("latency", {WEB: 0.5})
        tested = (await ask("GET", "/v1/alerts/test?rule=slow", reader=True)).json()
        assert tested["holds"] is False
        assert tested["samples"] == [{"labels": {"workload": "web"}, "value": 0.5, "holds": False}]
        world.evaluator.say("latency", {})
        tested = (await ask("GET", "/v1/alerts/test?rule=slow")).json()
        assert (tested["holds"], tested["samples"]) == (False, [])
        assert tested["note"] == "nothing in the last hour is latency"
        world.evaluator.say("latency > 1", {WEB: 1.5})
        tested = (await ask("GET", "/v1/alerts/test?rule=slow&app=shop")).json()
        assert tested["note"] == ""
        assert (tested["holds"], tested["value"]) == (True, 1.5)
        assert world.states("slow") == []
        tested = (await ask("GET", "/v1/alerts/test?rule=odd")).json()
        assert tested["error"] == "not understood"
        missing = await ask("GET", "/v1/alerts/test?rule=nothing")
        assert missing.status_code == 404
        assert "odd" in missing.json()["message"]

    with_api(body)


def test_the_history_is_of_a_rule_and_newest_first() -> None:
    async def body(world: AlertWorld, ask: Ask) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        await world.seconds(4)
        world.evaluator.say("latency > 1", None)
        await world.seconds(1)
        path = "/v1/alerts/history?rule=slow&app=shop"
        found = (await ask("GET", path, reader=True)).json()["items"]
        assert [event["what"] for event in found] == ["resolved", "firing", "pending"]
        assert len((await ask("GET", f"{path}&limit=1")).json()["items"]) == 1
        assert (await ask("GET", "/v1/alerts/history?rule=odd")).json()["items"] == []

    with_api(body)


def test_prometheus_clients_see_rules_and_alerts_in_its_words() -> None:
    async def body(world: AlertWorld, ask: Ask) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        await world.seconds(3)
        answer = (await ask("GET", "/prometheus/api/v1/rules", reader=True)).json()
        assert answer["status"] == "success"
        groups = {group["name"]: group for group in answer["data"]["groups"]}
        assert set(groups) == {"shop", "bedstone"}
        rules = {rule["name"]: rule for rule in groups["shop"]["rules"]}
        assert (rules["slow"]["state"], rules["slow"]["health"]) == ("firing", "ok")
        assert rules["slow"]["query"] == "latency > 1"
        assert (rules["odd"]["health"], rules["odd"]["lastError"]) == ("err", "not understood")
        answer = (await ask("GET", "/prometheus/api/v1/alerts", reader=True)).json()
        (alert,) = answer["data"]["alerts"]
        assert alert["labels"]["alertname"] == "slow"
        assert (alert["state"], alert["value"]) == ("firing", "1.5")

    with_api(body)
