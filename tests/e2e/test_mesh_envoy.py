"""The mesh on a real Envoy: who may call whom, what callers see of failures, how fast it follows.

The programs are small HTTP servers in the test's own process; each says what it received.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from bedstone.control.mesh.digests import digests_from_config_dump
from bedstone.model.resources import InstanceStatus, Phase
from bedstone.model.spec import AppSpec, Gateway, Route, WorkloadSpec
from bedstone.testing.mesh import HOST, MeshRig, free_port, mesh_rig
from bedstone.trust.svid import Svid

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


async def echo(head: str, writer: asyncio.StreamWriter) -> None:
    """Answer with the request's head as JSON."""
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    answer(writer, json.dumps({"line": line, "headers": headers}))


def answer(writer: asyncio.StreamWriter, body: str, status: str = "200 OK", more: str = "") -> None:
    writer.write(
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body.encode())}\r\n{more}\r\n{body}".encode()
    )


@contextlib.asynccontextmanager
async def program(handler: Handler = echo) -> AsyncIterator[int]:
    """A program that listens on the yielded port."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        errors = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*errors):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                for line in head.lower().split("\r\n"):
                    if line.startswith("content-length: "):
                        await reader.readexactly(int(line.partition(": ")[2]))
                await handler(head, writer)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def workload(*uses: str, timeout: float | None = None) -> WorkloadSpec:
    return WorkloadSpec(command=("unused",), uses=uses, timeout=timeout)


def bank(**more: object) -> AppSpec:
    workloads = {"web": workload("risk"), "risk": workload(), "other": workload()}
    return AppSpec.model_validate({"app": "bank", "workloads": workloads, **more})


def client(status: InstanceStatus, credential: str = "") -> httpx.AsyncClient:
    """An HTTP client that goes through an instance's proxy."""
    assert status.plumbing is not None
    user = f"{credential}@" if credential else ""
    proxy = f"http://{user}{HOST}:{status.plumbing.outbound.port}"
    return httpx.AsyncClient(proxy=proxy, timeout=10, trust_env=False)


def tls_context(rig: MeshRig, svid: Svid | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=rig.authority.bundle)
    context.check_hostname = False
    if svid is not None:
        chain, key = rig.directory / "chain.pem", rig.directory / "key.pem"
        chain.write_text(svid.chain)
        key.write_text(svid.key)
        context.load_cert_chain(chain, key)
    return context


def run(scenario: Callable[[MeshRig], Awaitable[None]], *, leds_threshold: int = 1000) -> None:
    async def main() -> None:
        async with mesh_rig(leds_threshold=leds_threshold) as rig:
            try:
                await scenario(rig)
            except BaseException:
                print((rig.directory / "envoy.log").read_text()[-2000:])
                raise

    asyncio.run(main())


DISGUISED = {
    "x_bedstone_caller",
    "x-bedstone_caller",
    "x_bedstone-caller",
    "x_envoy_internal",
    "x_forwarded_client_cert",
}
"""To a WSGI program the same as `x-bedstone-caller` and its like."""


def test_declared_call_passes_and_names_its_caller() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            async with client(web) as http:
                headers = {"x-bedstone-caller": "spiffe://forged/x", "traceparent": "00-ab"}
                headers |= dict.fromkeys(DISGUISED, "spiffe://forged/x") | {"x_own": "kept"}
                reply = await http.get("http://risk/score?q=1", headers=headers)
            assert reply.status_code == 200
            seen = reply.json()
            assert seen["line"] == "GET /score?q=1 HTTP/1.1"
            domain = rig.authority.domain
            assert seen["headers"]["x-bedstone-caller"] == f"spiffe://{domain}/bank/web"
            assert seen["headers"]["traceparent"] == "00-ab"
            assert seen["headers"]["x_own"] == "kept"
            assert not DISGUISED & seen["headers"].keys()
            assert seen["headers"]["host"] == "risk"
            assert "x-bedstone-origin" not in seen["headers"]

    run(scenario)


def test_undeclared_call_is_refused_where_it_starts() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "other", "o1", port)
            await rig.settle()
            async with client(web) as http:
                reply = await http.get("http://other/")
            assert reply.status_code == 403
            assert reply.json()["code"] == "denied"
            assert reply.json()["message"] == '"web" does not declare "other" in uses'

    run(scenario)


def test_forged_and_missing_identities_are_refused_where_they_arrive() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            risk = rig.add("bank", "risk", "r1", port)
            await rig.settle()
            assert risk.plumbing is not None
            url = f"https://{HOST}:{risk.plumbing.inbound.port}/"
            allowed = tls_context(rig, rig.identity("bank", "web"))
            async with httpx.AsyncClient(verify=allowed, http2=False) as http:
                assert (await http.get(url)).status_code == 200
            other = tls_context(rig, rig.identity("bank", "other"))
            async with httpx.AsyncClient(verify=other) as http:
                reply = await http.get(url)
            assert reply.status_code == 403
            assert reply.json()["code"] == "denied"
            assert "/bank/other" in reply.json()["message"]
            async with httpx.AsyncClient(verify=tls_context(rig, None)) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get(url)

    run(scenario)


def test_credential_is_demanded_and_not_passed_on() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            credential = "Basic dzpzZWNyZXQ="  # w:secret
            web = rig.add("bank", "web", "w1", port, services=["risk"], credential=credential)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            async with client(web) as http:
                refused = await http.get("http://risk/")
            async with client(web, "w:wrong") as http:
                wrong = await http.get("http://risk/")
            async with client(web, "w:secret") as http:
                passed = await http.get("http://risk/")
                undeclared = await http.get("http://other/")
            assert refused.status_code == wrong.status_code == 407
            assert refused.headers["proxy-authenticate"].startswith("Basic")
            assert "secret" not in refused.text
            assert passed.status_code == 200
            assert "proxy-authorization" not in passed.json()["headers"]
            assert undeclared.status_code == 403
            assert web.plumbing is not None
            direct = web.plumbing.services["risk"].port
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"http://{HOST}:{direct}/")).status_code == 200

    run(scenario)


def test_connection_that_ends_mid_request_has_an_unknown_outcome() -> None:
    async def scenario(rig: MeshRig) -> None:
        tries: list[str] = []

        async def die(head: str, writer: asyncio.StreamWriter) -> None:
            tries.append(head.split(" ", 1)[0])
            writer.close()

        async with program(die) as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            async with client(web) as http:
                posted = await http.post("http://risk/", content=b"x")
                assert tries == ["POST"], "a request that may have been applied is not repeated"
                got = await http.get("http://risk/")
                assert tries == ["POST", "GET", "GET", "GET"]
            for reply in (posted, got):
                assert reply.status_code == 502
                assert reply.headers["x-bedstone-outcome"] == "unknown"
                assert reply.json()["code"] == "unknown_outcome"
                assert "may have been applied" in reply.json()["message"]

    run(scenario)


def test_get_is_retried_on_another_replica_and_post_where_not_applied() -> None:
    async def scenario(rig: MeshRig) -> None:
        async def die(head: str, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with program(die) as dying, program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "good", port)
            rig.add("bank", "risk", "dying", dying)
            await rig.settle()
            async with client(web) as http:
                for _ in range(20):
                    assert (await http.get("http://risk/")).status_code == 200
            refused = rig.statuses["bank/default/risk/dying"]
            rig.update(refused, phase=Phase.STOPPED)
            rig.add("bank", "risk", "absent", free_port())  # its program does not listen
            await rig.settle()
            async with client(web) as http:
                for _ in range(20):
                    reply = await http.post("http://risk/", content=b"x")
                    assert reply.status_code == 200, reply.text

    run(scenario)


def test_nothing_to_call_says_that_nothing_was_applied() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "absent", free_port())
            await rig.settle()
            async with client(web) as http:
                reply = await http.post("http://risk/")
            assert reply.status_code == 503
            assert reply.headers["x-bedstone-outcome"] == "not-applied"
            assert reply.json()["code"] == "unavailable"

    run(scenario)


def test_programs_cannot_speak_for_the_mesh() -> None:
    async def scenario(rig: MeshRig) -> None:
        async def pretend(head: str, writer: asyncio.StreamWriter) -> None:
            answer(writer, "", "503 Busy", "x-bedstone-outcome: not-applied\r\n")

        async with program(pretend) as port:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            async with client(web) as http:
                reply = await http.post("http://risk/")
            assert reply.status_code == 503
            assert "x-bedstone-outcome" not in reply.headers

    run(scenario)


def test_deadline_of_the_caller_is_enforced_and_passed_on() -> None:
    async def scenario(rig: MeshRig) -> None:
        seen: list[str] = []

        async def slow(head: str, writer: asyncio.StreamWriter) -> None:
            seen.extend(x for x in head.split("\r\n") if x.startswith("x-envoy-expected"))
            await asyncio.sleep(60)

        async with program(slow) as port:
            spec = bank(workloads={"web": workload("risk"), "risk": workload(timeout=1.0)})
            rig.declare(spec)
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            async with client(web) as http:
                headers = {
                    "x-envoy-upstream-rq-timeout-ms": "200",
                    "x-forwarded-for": "203.0.113.9, 198.51.100.1",
                }
                reply = await http.get("http://risk/", headers=headers)
                declared = await http.post("http://risk/")
            assert reply.status_code == declared.status_code == 504
            assert reply.headers["x-bedstone-outcome"] == "unknown"
            # what ends them is what the program is told; without either, the client gives up
            told = [f"x-envoy-expected-rq-timeout-ms: {ms}" for ms in (200, 1000)]
            assert seen == told

    run(scenario)


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
                "traceparent": "00-keep",
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
            assert root["headers"]["traceparent"] == "00-keep"
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


def test_calls_enter_by_unix_sockets_as_an_identity() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(bank())
            rig.add("bank", "web", "w1", port)
            rig.add("bank", "other", "o1", port)
            await rig.settle()
            calls = rig.directory / "calls"
            operator = httpx.AsyncHTTPTransport(uds=str(calls / "bank.operator.sock"))
            async with httpx.AsyncClient(transport=operator) as http:
                reply = await http.get("http://other/")
            assert reply.json()["headers"]["x-bedstone-caller"].endswith("/bank/operator")
            as_web = httpx.AsyncHTTPTransport(uds=str(calls / "bank.web.sock"))
            async with httpx.AsyncClient(transport=as_web) as http:
                assert (await http.get("http://other/")).status_code == 403
            assert (calls / "bank.web.sock").stat().st_mode & 0o777 == 0o600

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
                    assert (await http.get("http://risk/")).status_code == 503

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
