"""What a reader may not see of an app, and operators may: the values in `env:`, who is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.model.api import ApplyRequest, TokenRequest
from bedstone.model.resources import Node, Presence
from bedstone.model.spec import AppSpec
from bedstone.server.api import build_api
from bedstone.server.changes import Changes
from bedstone.server.queries import MASK, Queries
from bedstone.server.sessions import Sessions
from bedstone.server.transactions import Transactions, located, through_mesh
from bedstone.store import Put, open_store
from bedstone.trust.authority import Authority

TOKEN = {"x-token": "topsecret"}
SPEC = AppSpec.model_validate(
    {
        "app": "shop",
        "workloads": {"web": {"command": ["x"], "env": {"KEY": "topsecret"}, "uses": []}},
        "receivers": {
            "people": {"webhook": "http://topsecret/", "secret": "topsecret", "headers": TOKEN}
        },
        "monitoring": {
            "remote_write": [{"url": "http://topsecret/", "bearer": "topsecret"}],
            "otlp": [{"url": "http://h/", "headers": TOKEN}],
        },
    }
)


class NoMesh:
    """A mesh that has nothing to say."""

    def acknowledged(self, node: str) -> frozenset[str]:
        return frozenset()

    def repair(self, node: str, digests: object) -> list[str]:
        return []

    def route_programmed(self, app: str) -> bool:
        return True


async def shown(client: httpx.AsyncClient) -> list[str]:
    """The answers of every route that tells of an app."""
    texts = []
    for kind in ("app", "workload", "revision"):
        listed = (await client.get(f"/v1/resources/{kind}")).json()["items"]
        assert len(listed) == 1, kind
        texts.append(str(listed))
        one = await client.get(f"/v1/resources/{kind}/{listed[0]['name']}")
        assert one.status_code == 200
        texts.append(one.text)
    texts += [(await client.get(f"/v1/{path}")).text for path in ("status", "apps/shop/status")]
    return texts


def test_a_reader_sees_the_names_of_variables_and_an_operator_the_values(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
            authority = Authority.open(tmp_path / "authority")
            mesh = NoMesh()
            sessions = Sessions(store, loop, authority, mesh)
            changes = Changes(store, loop)
            queries = Queries(
                loop,
                sessions,
                authority,
                mesh,
                session_address="127.0.0.1:1",
                complete=sessions.heard_from_all,
            )
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            try:
                here = (Node(name="n", address="127.0.0.1"), Presence(node="n"))
                await store.commit([Put(r.key, r.encode()) for r in here])
                await changes.apply("shop", ApplyRequest(spec=SPEC, root="/r"), "test")
                secret = (await changes.grant(TokenRequest(name="r", role="reader"), "test")).secret
                version = -1
                while not queries.resources("revision", masked=True).items:
                    version = await loop.changed(version)
                api = build_api(
                    store,
                    queries,
                    changes,
                    Transactions(loop, located(sessions), through_mesh(queries)),
                )
                seen: dict[str, list[str]] = {}
                for peer in ("192.0.2.1", "local:0"):
                    transport = httpx.ASGITransport(app=api, client=(peer, 0))
                    async with httpx.AsyncClient(
                        transport=transport,
                        base_url="http://api",
                        headers={"Authorization": f"Bearer {secret}"},
                    ) as client:
                        seen[peer] = await shown(client)
            finally:
                running.cancel()
        reader, operator = seen.values()
        assert not [text for text in reader if "topsecret" in text]
        assert all("KEY" in text and MASK in text for text in reader[:6])
        assert all("topsecret" in text for text in operator[:6])

    asyncio.run(main())
