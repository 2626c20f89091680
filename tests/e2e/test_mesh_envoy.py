"""The mesh on a real Envoy: who may call whom, and what callers see of failures."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import pytest

from bedstone.model.resources import Phase
from bedstone.testing.mesh import HOST, MeshRig, free_port
from bedstone.testing.mesh_programs import (
    DISGUISED,
    answer,
    bank,
    client,
    program,
    run,
    workload,
)
from bedstone.trust.svid import Svid


def tls_context(rig: MeshRig, svid: Svid | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=rig.authority.bundle)
    context.check_hostname = False
    if svid is not None:
        chain, key = rig.directory / "chain.pem", rig.directory / "key.pem"
        chain.write_text(svid.chain)
        key.write_text(svid.key)
        context.load_cert_chain(chain, key)
    return context


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
                # what comes after the handshake is not translated by every version
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
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
                inside = {"x-bedstone-transaction": "t1"}
                put = await http.put("http://risk/", content=b"x", headers=inside)
                assert tries == ["POST", "PUT"], "twice, it would be two branches"
                got = await http.get("http://risk/")
                assert tries == ["POST", "PUT", "GET", "GET", "GET"]
            for reply in (posted, put, got):
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
