"""Joining through the API: who may take which node's name, and what is kept of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.errors import ConflictError, InvalidError
from bedstone.model.api import JoinRequest
from bedstone.model.resources import Presence
from bedstone.server.api import build_api
from bedstone.server.changes import Changes
from bedstone.server.queries import Queries
from bedstone.server.sessions import Sessions
from bedstone.server.transactions import Transactions, located, through_mesh
from bedstone.store import Put, open_store
from bedstone.trust.authority import Authority
from bedstone.trust.spiffe import node_id
from bedstone.trust.svid import certificate_request, new_key


class NoMesh:
    """A mesh that has nothing to say."""

    def acknowledged(self, node: str) -> frozenset[str]:
        return frozenset()

    def repair(self, node: str, digests: object) -> list[str]:
        return []

    def route_programmed(self, app: str) -> bool:
        return True


def test_a_living_node_s_name_is_given_to_nobody_elsewhere_and_joining_is_audited(
    tmp_path: Path,
) -> None:
    """With another's name comes its identity: what it runs, and its workloads' certificates."""
    wanted = JoinRequest(
        request=certificate_request(new_key(), node_id("unknown", "n")), address="192.0.2.7"
    )

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
                assert queries.join("n", wanted, local=False).chain
                with pytest.raises(InvalidError, match="the server's own"):
                    queries.join("server", wanted, local=True)
                presence = Presence(node="n")
                await loop.reached(await store.commit([Put(presence.key, presence.encode())]))
                with pytest.raises(ConflictError, match="there is a node n already"):
                    queries.join("n", wanted, local=False)
                transport = httpx.ASGITransport(
                    app=build_api(
                        store,
                        queries,
                        changes,
                        Transactions(loop, located(sessions), through_mesh(queries)),
                    ),
                    client=("local:0", 0),
                )
                async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
                    answer = await http.post("/v1/nodes/n/join", json=wanted.model_dump())
                    assert answer.status_code == 200, "the node of this machine, again"
                (record,) = await changes.audit(10)
            finally:
                running.cancel()
        assert (record.who, record.action, record.target, record.detail) == (
            "local:root",
            "join",
            "node n",
            "192.0.2.7",
        )

    asyncio.run(main())
