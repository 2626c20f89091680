"""Digests that prove that a proxy has what it should have; light, for nodes import it too.

A digest is by `TYPE/NAME`, such as `LDS/outbound/bank/default/web/1`. For listeners, clusters and
routes it is the resource's version, which Envoy keeps and which is itself a digest of content.
Envoy keeps no version of endpoints that came by delta, so theirs is made from their addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_EDS_SLASHES = 2  # APP/CELL/WORKLOAD


def addresses_digest(addresses: Iterable[tuple[str, int]]) -> str:
    """The digest of a set of endpoints, whatever their order."""
    text = "\n".join(sorted(f"{host} {port}" for host, port in addresses))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digests_from_config_dump(dump: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what Envoy has, from its admin's `/config_dump?include_eds` (JSON).

    Only what came dynamically counts. A listener that is still warming is not there.
    """
    found: dict[str, str] = {}
    for section in dump.get("configs", ()):
        match str(section.get("@type", "")).rpartition(".")[2]:
            case "ListenersConfigDump":
                found |= _listeners(section)
            case "ClustersConfigDump":
                for entry in section.get("dynamic_active_clusters", ()):
                    name = entry.get("cluster", {}).get("name", "")
                    found[f"CDS/{name}"] = entry.get("version_info", "")
            case "RoutesConfigDump":
                for entry in section.get("dynamic_route_configs", ()):
                    name = entry.get("route_config", {}).get("name", "")
                    found[f"RDS/{name}"] = entry.get("version_info", "")
            case "EndpointsConfigDump":
                found |= _endpoints(section)
            case _:
                pass
    return found


def _listeners(section: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"LDS/{entry.get('name', '')}": entry["active_state"].get("version_info", "")
        for entry in section.get("dynamic_listeners", ())
        if "active_state" in entry
    }


def _endpoints(section: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for entry in section.get("dynamic_endpoint_configs", ()):
        config = entry.get("endpoint_config", {})
        name = config.get("cluster_name", "")
        if name.count("/") == _EDS_SLASHES:  # others are endpoints that a cluster itself contains
            found.setdefault(name, set()).add(addresses_digest(_addresses(config)))
    # clusters that share endpoints are listed each; if they differ, the digest equals none of them
    return {f"EDS/{name}": "+".join(sorted(digests)) for name, digests in found.items()}


def _addresses(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for locality in config.get("endpoints", ()):
        for endpoint in locality.get("lb_endpoints", ()):
            address = endpoint.get("endpoint", {}).get("address", {}).get("socket_address", {})
            yield address.get("address", ""), int(address.get("port_value", 0))
