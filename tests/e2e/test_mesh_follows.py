"""The mesh on a real Envoy: gateways, and how it follows what changes."""

from __future__ import annotations

import asyncio

import httpx

from bedstone.control.mesh.digests import digests_from_config_dump
from bedstone.model.resources import Phase
from bedstone.model.spec import Gateway, Route
from bedstone.testing.mesh import HOST, MeshRig, free_port
from bedstone.testing.mesh_programs import (
    DISGUISED,
    bank,
    client,
    program,
    run,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_gateway_routes_and_removes_internal_headers() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            routes = (
                Route(to="web"),
                Route(to="risk", path="/api", strip=True),
                Route(to="web", path="/api/v2"),
                Route(to="risk", path="/", host="risk.example"),
            )
            gateway = Gateway(port=free_port(), routes=routes)
            rig.declare(bank(gateway=gateway))
            rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            assert rig.ads.route_programmed("bank")
            base = f"http://{HOST}:{gateway.port}"
            sent = {
                "x-bedstone-caller": "spiffe://forged/x",
                "X-Bedstone-Transaction": "t",
                "x-envoy-upstream-rq-timeout-ms": "1",
                "x-forwarded-client-cert": "URI=spiffe://forged/x",
                "traceparent": f"00-{TRACE}-00f067aa0ba902b7-00",
                "x-request-id": "mine",
                **dict.fromkeys(DISGUISED, "spiffe://forged/x"),
            }
            async with httpx.AsyncClient() as http:
                root = (await http.get(f"{base}/a", headers=sent)).json()
                stripped = (await http.get(f"{base}/api/x?y=1")).json()
                bare = (await http.get(f"{base}/api")).json()
                longest = (await http.get(f"{base}/api/v2/z")).json()
                boundary = (await http.get(f"{base}/apiary")).json()
                host = (await http.get(f"{base}/h", headers={"host": "risk.example"})).json()
            gateway_id = f"spiffe://{rig.authority.domain}/bank/gateway"
            assert root["headers"]["x-bedstone-caller"] == gateway_id
            version, trace, span, flags = root["headers"]["traceparent"].split("-")
            assert (version, trace) == ("00", TRACE)
            assert span != "00f067aa0ba902b7"
            assert flags == "01", "whether it is sampled is not for outsiders to say"
            assert root["headers"]["x-request-id"] == "mine"
            assert "x-request-id" not in bare["headers"]
            assert "x-bedstone-transaction" not in root["headers"]
            assert "x-forwarded-client-cert" not in root["headers"]
            assert not DISGUISED & root["headers"].keys()
            assert root["headers"]["x-envoy-expected-rq-timeout-ms"] == "60000"
            assert stripped["line"] == "GET /x?y=1 HTTP/1.1"
            assert bare["line"] == "GET / HTTP/1.1"
            assert longest["line"] == "GET /api/v2/z HTTP/1.1"
            assert boundary["line"] == "GET /apiary HTTP/1.1"
            assert host["line"] == "GET /h HTTP/1.1"

    run(scenario)


def test_what_services_serve_each_other_is_closed_to_the_gateway() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            routes = (
                Route(to="web"),
                Route(to="risk", path="/api", strip=True),
                Route(to="risk", path="/", host="risk.example"),
            )
            gateway = Gateway(port=free_port(), routes=routes)
            rig.declare(bank(gateway=gateway))
            rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            base = f"http://{HOST}:{gateway.port}"
            closed = (
                "/.bedstone",
                "/.bedstone/transactions/x",
                "/.bedstone/transactions/x?y=/z",
                "//.bedstone/transactions/x",
                "/a/../.bedstone/transactions/x",
                "/%2ebedstone/transactions/x",
                "/api/.bedstone/transactions/x",
                "/api//.bedstone/transactions/x",
            )
            async with httpx.AsyncClient() as http:
                for host in (HOST, "risk.example"):
                    for target in closed:
                        reply = await http.post(
                            base, headers={"host": host}, extensions={"target": target.encode()}
                        )
                        assert (target, reply.status_code) == (target, 403)
                        assert reply.json()["code"] == "denied"
                for path in ("/.bedstones", "/bedstone/x", "/x?y=/.bedstone/"):
                    assert (await http.get(base + path)).status_code == 200

    run(scenario)


def test_taken_port_is_reported_and_the_last_good_stays() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port, program() as taken:
            good = free_port()
            rig.declare(bank(gateway=Gateway(port=good, routes=(Route(to="web"),))))
            rig.add("bank", "web", "w1", port)
            await rig.settle()
            rig.declare(bank(gateway=Gateway(port=taken, routes=(Route(to="web"),))))
            async with asyncio.timeout(10):
                while not rig.ads.rejections():
                    await rig.ads.progressed()
            (rejection,) = rig.ads.rejections()
            assert (rejection.app, rejection.subject) == ("bank", "gateway")
            assert "Address already in use" in rejection.message
            assert not rig.ads.route_programmed("bank")
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"http://{HOST}:{good}/")).status_code == 200
            free = free_port()
            rig.declare(bank(gateway=Gateway(port=free, routes=(Route(to="web"),))))
            async with asyncio.timeout(10):
                while not rig.ads.route_programmed("bank"):
                    await rig.ads.progressed()
            assert rig.ads.rejections() == []

    run(scenario)


def test_endpoint_is_routed_when_it_is_ready_and_not_when_it_is_not() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            risk = rig.add("bank", "risk", "r1", port, phase=Phase.STARTING)
            await rig.settle()
            async with client(web) as http:
                for _ in range(5):
                    risk = rig.update(risk, phase=Phase.READY)
                    async with asyncio.timeout(20):  # how soon is measured in benchmarks
                        while (await http.get("http://risk/")).status_code != 200:
                            pass
                    risk = rig.update(risk, phase=Phase.UNREADY)
                    assert await rig.ads.settled("bank", "risk", 20)
                    # Envoy's main thread acknowledges; its workers follow a moment later.
                    async with asyncio.timeout(20):
                        while (await http.get("http://risk/")).status_code != 503:
                            pass

    run(scenario)


def test_digests_match_and_difference_is_repaired() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank(gateway=Gateway(port=free_port(), routes=(Route(to="web"),))))
            web = rig.add("bank", "web", "w1", port, services=["risk"])
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            reported = digests_from_config_dump(await rig.engine.config_dump())
            assert reported == rig.mesh.digests("n1")
            assert rig.ads.repair("n1", reported) == []
            # a proxy that says that it lacks one thing and has another wrong gets these again
            del reported[f"LDS/outbound/{web.path}"]
            reported["EDS/bank/default/risk"] = "0"
            repaired = rig.ads.repair("n1", reported)
            assert repaired == ["EDS/bank/default/risk", f"LDS/outbound/{web.path}"]
            await rig.settle()
            async with client(web) as http:
                assert (await http.get("http://risk/")).status_code == 200

    run(scenario)


def test_proxy_that_restarts_is_configured_again() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            await rig.stop_envoy()
            await rig.start_envoy()
            await rig.settle()
            async with client(web) as http:
                assert (await http.get("http://risk/")).status_code == 200

    run(scenario)


def test_large_service_is_delivered_endpoint_by_endpoint() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            names = [f"r{i}" for i in range(6)]
            for name in names:
                rig.add("bank", "risk", name, port)
            await rig.settle()
            (state,) = rig.ads.proxies()
            assert state.subscribed["LEDS"] == 6
            async with client(web) as http:
                assert (await http.get("http://risk/")).status_code == 200
                for name in names[1:]:
                    rig.update(rig.statuses[f"bank/default/risk/{name}"], phase=Phase.UNREADY)
                assert await rig.ads.settled("bank", "risk", 20)
                for _ in range(10):
                    assert (await http.get("http://risk/")).status_code == 200

    run(scenario, leds_threshold=3)
