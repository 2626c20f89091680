"""Who may ask whom for the second phase of a transaction, on a real Envoy."""

from __future__ import annotations

import ssl

import httpx

from bedstone.model.spec import AppSpec
from bedstone.testing.mesh import HOST, MeshRig
from bedstone.testing.mesh_programs import client, program, run, workload

PHASE_TWO = "/.bedstone/transactions/tcc/Debit"


def declared() -> AppSpec:
    """Web calls orders, orders calls accounts; all but `other` share the log."""
    return AppSpec.model_validate(
        {
            "app": "bank",
            "workloads": {
                "web": workload("orders", "ledger"),
                "orders": workload("accounts", "ledger"),
                "accounts": workload("ledger"),
                "other": workload("accounts"),
            },
            "databases": {"ledger": {}},
            "transactions": {"database": "ledger"},
        }
    )


def test_who_shares_the_log_reaches_participants_and_nothing_else() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(declared())
            placed = {
                name: rig.add("bank", name, f"{name}-1", port)
                for name in ("web", "orders", "accounts", "other")
            }
            await rig.settle()
            expected = {
                ("web", "accounts", PHASE_TWO): 200,
                ("web", "accounts", "/"): 403,
                ("web", "accounts", "/.bedstone/transactions"): 403,
                ("web", "orders", PHASE_TWO): 200,
                ("web", "orders", "/"): 200,
                ("accounts", "web", PHASE_TWO): 200,  # it may have to end what web began
                ("accounts", "web", "/"): 403,
                ("accounts", "other", PHASE_TWO): 403,
                ("other", "web", PHASE_TWO): 403,
                ("other", "accounts", "/"): 200,
                ("other", "accounts", PHASE_TWO): 403,
            }
            seen = {}
            for caller, callee, path in expected:
                async with client(placed[caller]) as http:
                    reply = await http.post(f"http://{callee}{path}")
                seen[caller, callee, path] = reply.status_code
            assert seen == expected

    run(scenario)


def test_a_certificate_counts_where_the_request_arrives() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port:
            rig.declare(declared())
            accounts = rig.add("bank", "accounts", "a1", port)
            await rig.settle()
            assert accounts.plumbing is not None
            url = f"https://{HOST}:{accounts.plumbing.inbound.port}"
            expected = {"web": (200, 403), "other": (403, 200), "gateway": (403, 403)}
            expected["operator"] = (200, 200)
            for identity, statuses in expected.items():
                async with httpx.AsyncClient(verify=_context(rig, identity)) as http:
                    found = [(await http.post(url + path)).status_code for path in (PHASE_TWO, "/")]
                assert (identity, tuple(found)) == (identity, statuses)

    run(scenario)


def _context(rig: MeshRig, identity: str) -> ssl.SSLContext:
    svid = rig.identity("bank", identity)
    context = ssl.create_default_context(cadata=rig.authority.bundle)
    context.check_hostname = False
    chain, key = rig.directory / "chain.pem", rig.directory / "key.pem"
    chain.write_text(svid.chain)
    key.write_text(svid.key)
    context.load_cert_chain(chain, key)
    return context
