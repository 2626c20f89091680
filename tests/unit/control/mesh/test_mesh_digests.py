"""Digests from a configuration dump; importing them is light."""

from __future__ import annotations

import subprocess
import sys

from bedstone.control.mesh.digests import addresses_digest, digests_from_config_dump
from bedstone.control.mesh.names import subject_of


def test_dump_becomes_digests() -> None:
    def endpoint(port: int) -> dict[str, object]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        return {"endpoint": {"address": address}}

    def endpoints(name: str, *ports: int) -> dict[str, object]:
        localities = [{"lb_endpoints": [endpoint(port) for port in ports]}]
        return {"endpoint_config": {"cluster_name": name, "endpoints": localities}}

    dump = {
        "configs": [
            {
                "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                "dynamic_listeners": [
                    {"name": "gateway/bank", "active_state": {"version_info": "v1"}},
                    {"name": "inbound/x", "warming_state": {"version_info": "v2"}},
                ],
            },
            {
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                "static_clusters": [{"cluster": {"name": "bedstone_ads"}}],
                "dynamic_active_clusters": [{"cluster": {"name": "to/a"}, "version_info": "v3"}],
            },
            {
                "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
                "dynamic_route_configs": [
                    {"route_config": {"name": "gateway/bank"}, "version_info": "v4"}
                ],
            },
            {
                "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
                "dynamic_endpoint_configs": [
                    endpoints("bank/default/risk", 1, 2),
                    endpoints("bank/default/risk", 2, 1),
                    endpoints("bank/default/web", 1),
                    endpoints("bank/default/web", 2),
                    endpoints("program/bank/default/web/w1", 1),
                ],
            },
        ]
    }
    found = digests_from_config_dump(dump)
    same = addresses_digest([("127.0.0.1", 1), ("127.0.0.1", 2)])
    assert found.pop("EDS/bank/default/web").count("+") == 1, "clusters that disagree match nothing"
    assert found == {
        "LDS/gateway/bank": "v1",
        "CDS/to/a": "v3",
        "RDS/gateway/bank": "v4",
        "EDS/bank/default/risk": same,
    }


def test_import_is_light() -> None:
    script = (
        "import sys, bedstone.control.mesh.digests; print({'grpc', 'pydantic'} & {*sys.modules})"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert output.stdout.decode().strip() == "set()"


def test_subjects_are_parts_of_the_manifest() -> None:
    assert subject_of("gateway/bank") == ("bank", "gateway")
    assert subject_of("to/bank/default/gateway/web") == ("bank", "gateway")
    assert subject_of("inbound/bank/default/risk/r1") == ("bank", "workloads.risk")
    assert subject_of("to/bank/default/web/risk") == ("bank", "workloads.web")
    assert subject_of("database/bank/default/ledger") == ("bank", "databases.ledger")
    assert subject_of("database/bank/default/web/w1/ledger") == ("bank", "workloads.web")
    assert subject_of("call/n1/bank/default/web") == ("bank", "")
    assert subject_of("bank/default/risk") == ("bank", "workloads.risk")
    endpoint = "xdstp://d/envoy.config.endpoint.v3.LbEndpoint/bank/default/risk/r1"
    assert subject_of(endpoint) == ("bank", "workloads.risk")
    assert subject_of("something") == ("", "")
