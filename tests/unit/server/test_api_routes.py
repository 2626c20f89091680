"""The HTTP API over a memory store: who may do what, and what is answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.model.resources import AuditRecord, DatabaseStatus, Node, Phase, Presence
from bedstone.server.api import LARGEST_BODY, build_api
from bedstone.server.changes import Changes
from bedstone.server.queries import Queries
from bedstone.server.sessions import Sessions
from bedstone.server.transactions import Transactions, located, through_mesh
from bedstone.store import Put, Store, open_store
from bedstone.trust.authority import Authority
from bedstone.trust.svid import certificate_request, new_key

SPEC = {
    "app": "shop",
    "gateway": {"port": 8123, "routes": [{"path": "/", "to": "web"}]},
    "workloads": {"web": {"command": ["web"], "replicas": 2, "uses": ["db"]}},
    "databases": {"db": {}},
}


class NoMesh:
    """A mesh that has nothing to say."""

    def acknowledged(self, node: str) -> frozenset[str]:
        return frozenset()

    def repair(self, node: str, digests: Mapping[str, str]) -> list[str]:
        return []

    def route_programmed(self, app: str) -> bool:
        return True


class World:
    """An API with its store, reachable as a local caller or as one from the network."""

    def __init__(self, store: Store, loop: ControlLoop, authority: Authority) -> None:
        mesh = NoMesh()
        sessions = Sessions(store, loop, authority, mesh)
        changes = Changes(store, loop, clock=lambda: 1_700_000_000.0)
        queries = Queries(
            loop,
            sessions,
            authority,
            mesh,
            session_address="127.0.0.1:1",
            complete=sessions.heard_from_all,
            clock=lambda: 1_700_000_000.0,
        )
        self.store, self.loop = store, loop
        transactions = Transactions(loop, located(sessions), through_mesh(queries))
        self._api = build_api(store, queries, changes, transactions)

    def client(self, peer: str = "local:0", token: str = "") -> httpx.AsyncClient:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._api({**scope, "client": (peer, 0)}, receive, send)

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)


def run(tmp_path: Path, check: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
            world = World(store, loop, Authority.open(tmp_path / "authority"))
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            try:
                await asyncio.wait_for(check(world), 20)
            finally:
                running.cancel()

    asyncio.run(main())


def test_nothing_but_liveness_without_a_credential(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client("192.0.2.1") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            for method, path in (
                ("GET", "/v1/openapi.json"),
                ("GET", "/v1/status"),
                ("GET", "/v1/resources/app"),
                ("PUT", "/v1/apps/shop"),
                ("DELETE", "/v1/apps/shop"),
                ("POST", "/v1/tokens"),
                ("POST", "/v1/nodes/n/join"),
                ("GET", "/v1/audit"),
                ("GET", "/v1/apps/shop/watch"),
            ):
                answer = await client.request(method, path, json={})
                assert answer.status_code == 401, path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            for path in ("/docs", "/redoc", "/openapi.json"):
                assert (await client.get(path)).status_code == 401, "not even what exists is told"

    run(tmp_path, check)


def test_a_stranger_is_refused_before_its_body_is_looked_at(tmp_path: Path) -> None:
    """Neither is it held in memory, nor does an answer tell which path takes what."""

    async def check(world: World) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b"{" * 65536

        kind = {"Content-Type": "application/json"}
        async with world.client("192.0.2.1") as client:
            for path in ("/v1/tokens", "/v1/apps/shop/plan", "/v1/nothing"):
                answer = await client.post(path, content=b"{", headers=kind)
                assert answer.status_code == 401, answer.text
                answer = await client.post(path, content=endless(), headers=kind)
                assert answer.status_code == 401, answer.text
        assert read == 0

    run(tmp_path, check)


def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"{}"

        kind = {"Content-Type": "application/json"}
        async with world.client() as client:
            large = {**kind, "Content-Length": str(LARGEST_BODY + 1)}
            answer = await client.post("/v1/tokens", content=chunks(), headers=large)
            assert answer.status_code == 422, answer.text
            assert "too large" in answer.json()["message"]
            chunked = {**kind, "Transfer-Encoding": "chunked"}
            answer = await client.post("/v1/tokens", content=chunks(), headers=chunked)
            assert answer.status_code == 422, answer.text
            assert "Content-Length" in answer.json()["message"]

    run(tmp_path, check)


def test_another_user_on_the_socket_is_refused(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client("local:54321") as client:
            answer = await client.get("/v1/status")
            assert answer.status_code == 403
            assert "54321" in answer.json()["message"]

    run(tmp_path, check)


def test_a_reader_reads_and_changes_nothing(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as local:
            grant = await local.post("/v1/tokens", json={"name": "eye", "role": "reader"})
            secret = grant.json()["secret"]
            again = await local.post("/v1/tokens", json={"name": "eye", "role": "operator"})
            assert again.status_code == 409
            listed = (await local.get("/v1/tokens")).json()
            assert listed == [{"name": "eye", "role": "reader", "secret": None}]
        held = (await world.store.list("tokens/")).entries[0].value
        assert secret.encode() not in held
        async with world.client("192.0.2.1", secret) as reader:
            assert (await reader.get("/v1/status")).status_code == 200
            assert "/v1/apps/{name}" in (await reader.get("/v1/openapi.json")).json()["paths"]
            refused = await reader.put("/v1/apps/shop", json={"spec": SPEC})
            assert refused.status_code == 403
            assert "token:eye has the role reader" in refused.json()["message"]
        async with world.client() as local:
            assert (await local.delete("/v1/tokens/eye")).status_code == 200
        async with world.client("192.0.2.1", secret) as reader:
            assert (await reader.get("/v1/status")).status_code == 403

    run(tmp_path, check)


def test_every_change_is_audited_with_who_and_when(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as local:
            grant = await local.post("/v1/tokens", json={"name": "ci", "role": "operator"})
        async with world.client("192.0.2.1", grant.json()["secret"]) as ci:
            applied = await ci.put("/v1/apps/shop", json={"spec": SPEC})
            assert applied.status_code == 200, applied.text
            assert applied.json()["generation"] == 1
            same = await ci.put("/v1/apps/shop", json={"spec": SPEC})
            assert (same.json()["generation"], same.json()["changes"]) == (1, [])
            await ci.post("/v1/apps/shop/workloads/web/restart")
            records = [AuditRecord.model_validate(r) for r in (await ci.get("/v1/audit")).json()]
        told = {(record.who, record.action, record.target) for record in records}
        assert told == {
            ("token:ci", "restart", "shop/web"),
            ("token:ci", "apply", "app shop"),
            ("local:root", "grant", "token ci"),
        }
        assert all(record.at == 1_700_000_000.0 for record in records)

    run(tmp_path, check)


def test_bad_requests_say_what_is_wrong_and_change_nothing(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            cases: list[tuple[str, str, object, int, str]] = [
                ("PUT", "/v1/apps/shop", {"spec": {**SPEC, "typo": 1}}, 422, "typo"),
                ("PUT", "/v1/apps/other", {"spec": SPEC}, 422, "declares app shop"),
                ("PUT", "/v1/apps/shop", {"spec": SPEC, "generation": 7}, 409, "generation 0"),
                ("DELETE", "/v1/apps/none", None, 404, "there is no app none"),
                ("GET", "/v1/resources/typo", None, 422, "expected one of app"),
                ("GET", "/v1/resources/instance/x/y", None, 404, "no instance x/y"),
                ("DELETE", "/v1/resources/node/x", None, 422, "cannot be deleted"),
                ("POST", "/v1/tokens", {"name": "Not A Name"}, 422, "name"),
                ("POST", "/v1/nodes/n/join", {"request": "x"}, 422, "signing request"),
                ("POST", "/v1/nodes/../join", {"request": "x"}, 404, ""),
            ]
            for method, path, body, status, message in cases:
                answer = await client.request(method, path, json=body)
                assert answer.status_code == status, (path, answer.text)
                assert message in answer.text
        assert (await world.store.list("")).entries == []

    run(tmp_path, check)


def test_apply_makes_instances_and_status_tells_what_is_waited_for(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.store.commit(
            [
                Put(r.key, r.encode())
                for r in (Node(name="n", address="127.0.0.1"), Presence(node="n"))
            ]
        )
        async with world.client() as client:
            await client.put("/v1/apps/shop", json={"spec": SPEC, "root": "/srv"})
            version = -1
            while len((await client.get("/v1/resources/instance")).json()["items"]) < 2:
                version = await world.loop.changed(version)
            status = (await client.get("/v1/apps/shop/status")).json()
            assert not status["ready"]
            assert status["gateway"] == "http://localhost:8123"
            kinds = {(part["kind"], part["name"].split("-")[0]) for part in status["parts"]}
            assert {("instance", "web"), ("engine", "db"), ("route", "/ → web")} <= kinds
            assert any(line.startswith("instance web-") for line in status["waiting_for"])
            join = await client.post(
                "/v1/nodes/n/join",
                json={"request": certificate_request(new_key(), "spiffe://any/node/n")},
            )
            assert join.json()["session"] == "127.0.0.1:1"
            assert join.json()["chain"].startswith("-----BEGIN CERTIFICATE-----")
            call = await client.post("/v1/apps/shop/workloads/web/call", json={"identity": "no"})
            assert call.status_code == 404
            sent = {"path": "/secrets?key=hush", "method": "POST"}
            call = await client.post("/v1/apps/shop/workloads/web/call", json=sent)
            assert call.status_code == 503
            assert call.headers["Retry-After"] == "1"
            audit = (await client.get("/v1/audit")).json()
            called = [(it["target"], it["detail"]) for it in audit if it["action"] == "call"]
            assert ("shop/web", "POST /secrets as operator") in called
            assert "hush" not in str(audit)

    run(tmp_path, check)


def test_a_databases_password_is_shown_to_nobody(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        url = "postgresql://shop:topsecret@db.example/shop"
        spec = {**SPEC, "databases": {"db": {"url": url}}}
        async with world.client() as client:
            request = {"spec": spec, "root": "/r"}
            planned = await client.post("/v1/apps/shop/plan", json=request)
            applied = await client.put("/v1/apps/shop", json=request)
            assert applied.status_code == 200, applied.text
            kinds = ("app", "app/shop", "database", "workload", "revision", "instance")
            paths = ["/v1/status", *(f"/v1/resources/{kind}" for kind in kinds)]
            shown = [planned, applied, *[await client.get(path) for path in paths]]
            assert all(answer.status_code == 200 for answer in shown)
            assert '"engine":"postgres"' in shown[4].text
            assert not [answer.text for answer in shown if "topsecret" in answer.text]

    run(tmp_path, check)


@pytest.mark.parametrize("url", ["${env.DB}", "postgres://u:${env.DB}@db/x", "topsecret", ""])
def test_a_url_that_cannot_be_used_is_refused_unshown(tmp_path: Path, url: str) -> None:
    async def check(world: World) -> None:
        spec = {**SPEC, "databases": {"db": {"url": url}}}
        async with world.client() as client:
            answer = await client.put("/v1/apps/shop", json={"spec": spec, "root": "/r"})
            assert answer.status_code == 422, answer.text
            assert "databases.db.url" in answer.text
            assert "topsecret" not in answer.text

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("app", "workload"), [("node", "local"), ("server", "web"), ("shop", "gateway")]
)
def test_nobody_declares_the_identity_of_a_node_or_a_gateway(
    tmp_path: Path, app: str, workload: str
) -> None:
    """`spiffe://DOMAIN/node/local` is the node's, whoever applies what no rules have checked."""

    async def check(world: World) -> None:
        spec = {"app": app, "workloads": {workload: {"command": ["web"]}}}
        async with world.client() as client:
            for verb, path in (("POST", f"/v1/apps/{app}/plan"), ("PUT", f"/v1/apps/{app}")):
                answer = await client.request(verb, path, json={"spec": spec, "root": "/r"})
                assert answer.status_code == 422, answer.text
                assert "is reserved" in answer.json()["message"]

    run(tmp_path, check)


def test_a_port_of_another_app_is_refused(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await client.put("/v1/apps/shop", json={"spec": SPEC})
            other = await client.put("/v1/apps/twin", json={"spec": {**SPEC, "app": "twin"}})
            assert other.status_code == 422
            assert "port 8123 is the gateway of app shop" in other.json()["message"]

    run(tmp_path, check)


@pytest.mark.parametrize("kind", ["app", "node", "workload", "route", "instance", "database"])
def test_every_kind_lists_and_gets(tmp_path: Path, kind: str) -> None:
    async def check(world: World) -> None:
        await world.store.commit(
            [
                Put(r.key, r.encode())
                for r in (Node(name="n", address="127.0.0.1"), Presence(node="n"))
            ]
        )
        async with world.client() as client:
            await client.put("/v1/apps/shop", json={"spec": SPEC})
            version = -1
            while not (items := (await client.get(f"/v1/resources/{kind}")).json()["items"]):
                version = await world.loop.changed(version)
            one = (await client.get(f"/v1/resources/{kind}/{items[0]['name']}")).json()
            assert one["value"] == items[0]["value"]

    run(tmp_path, check)


def test_a_resource_shows_effective_values_and_what_its_node_says(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        status = DatabaseStatus(app="shop", name="db", node="n", phase=Phase.READY)
        await world.store.commit(
            [
                Put(r.key, r.encode())
                for r in (Node(name="n", address="127.0.0.1"), Presence(node="n"), status)
            ]
        )
        async with world.client() as client:
            await client.put("/v1/apps/shop", json={"spec": SPEC})
            workload = (await client.get("/v1/resources/workload/shop/web")).json()["value"]
            shown = [workload[field] for field in ("replicas", "isolation", "protocol", "uses")]
            assert shown == [2, "process", "http", ["db"]]
            version = -1
            while not (items := (await client.get("/v1/resources/database")).json()["items"]):
                version = await world.loop.changed(version)
            assert items[0]["value"]["status"]["phase"] == "ready"

    run(tmp_path, check)


def test_the_oldest_audit_records_are_forgotten(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        changes = Changes(world.store, world.loop)
        records = [
            AuditRecord(at=n, who="x", action="y", target="z", sequence=f"{n:04}") for n in range(9)
        ]
        await world.store.commit([Put(r.key, r.encode()) for r in records])
        await changes.trim_audit(kept=4)
        assert [record.at for record in await changes.audit(100)] == [8, 7, 6, 5]

    run(tmp_path, check)
