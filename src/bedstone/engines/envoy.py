"""One Envoy: its bootstrap, its process, and its admin interface.

Everything but the bootstrap comes by delta ADS. The admin interface is a 0600 Unix socket. Hot
restart is off: it would leave shared memory behind when killed, and is not needed where a
restarted Envoy gets its whole configuration at once.

The certificate for ADS is read from files through a file-based secret whose directory is watched:
replace the files by renaming new ones over them (both, key first) and the next connection uses
them, without a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedstone.engines.programs import envoy_program
from bedstone.errors import UnavailableError
from bedstone.processes.spec import STAGE_ENVOY, Limits, ProcessSpec
from bedstone.telemetry.names import BUCKETS

if TYPE_CHECKING:
    import httpx

ADS_CLUSTER = "bedstone_ads"
SDS_CLUSTER = "bedstone_sds"
COLLECTOR_CLUSTER = "bedstone_collector"
TELEMETRY_CLUSTER = "bedstone_telemetry"

BELOW = 0.5
"""How far below the bounds in `BUCKETS`, in milliseconds, those are that Envoy is given."""
KEPT = (
    r"http\.(gateway|inbound)/[^.]*\.(downstream_rq_([2-5]xx|active|time)|rbac\.denied)",
    r"http\.(outbound|call|connect)/[^.]*\.rq_direct_response",
    r"cluster\.to/[^.]*\.upstream_rq_([2-5]xx|time|retry)",
    r"vhost\..*\.route\.[^.]*\.upstream_rq_([2-5]xx|time)",
    r"bedstone\..*",
    r"(server|listener_manager|cluster_manager|control_plane|filesystem)\..*",
    r"cluster\.bedstone_.*",
    r".*init_fetch_timeout",
)
"""The statistics that are kept, as whole names: what the collector reads, and what tells how Envoy
itself is. Without a choice there are some hundred for each listener and cluster."""

_TYPE = "type.googleapis.com/envoy."
_RUNTIME = {
    # spans leave in batches, and soon
    "tracing.opentelemetry.min_flush_spans": 64,
    "tracing.opentelemetry.flush_interval_ms": 500,
}


@dataclass(frozen=True, slots=True)
class AdsAddress:
    """Where the control plane is: `host` and `port`, or a Unix socket's `path`."""

    host: str = ""
    port: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class AdsTls:
    """Files for mutual TLS with the control plane.

    Args:
        certificate: PEM chain of the node's certificate.
        key: its PEM key, in the same directory.
        authority: PEM of the authorities that may have signed the server's certificate.
        server_name: SPIFFE identity (URI) or DNS name that the server must have.
    """

    certificate: Path
    key: Path
    authority: Path
    server_name: str


@dataclass(frozen=True, slots=True)
class EnvoyEngine:
    """One Envoy process of a node.

    Args:
        node_id: what the control plane knows this proxy as.
        cluster: the node's group, for the control plane.
        run_dir: short directory for bootstrap and admin socket.
        log: file that its output is appended to.
        ads: where the control plane is.
        tls: mutual TLS with it; None only for a Unix socket.
        sds_socket: the node's secret service; None for none.
        collector_socket: the node's collector of spans and access logs (OTLP over gRPC).
        telemetry_socket: the same collector, for what instances send (OTLP over HTTP/1.1).
        name: of the process.
        metadata: told to the control plane.
        concurrency: worker threads, capped at the processors there are.
        drain_seconds: how long a replaced listener finishes its connections.
        max_connections: downstream connections before new ones are refused.
        memory: limit in bytes.
    """

    node_id: str
    cluster: str
    run_dir: Path
    log: Path
    ads: AdsAddress
    tls: AdsTls | None = None
    sds_socket: Path | None = None
    collector_socket: Path | None = None
    telemetry_socket: Path | None = None
    name: str = "envoy"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 2
    drain_seconds: int = 5
    max_connections: int = 20_000
    memory: int | None = None

    @property
    def admin_socket(self) -> Path:
        """Path of the admin interface."""
        return self.run_dir / f"{self.name}-admin.sock"

    @property
    def bootstrap_path(self) -> Path:
        """Path of the bootstrap."""
        return self.run_dir / f"{self.name}.json"

    def bootstrap(self) -> dict[str, Any]:
        """The bootstrap, pure."""
        clusters = [_cluster(ADS_CLUSTER, self._ads_endpoint(), self._ads_socket())]
        if self.sds_socket is not None:
            pipe = {"pipe": {"path": str(self.sds_socket)}}
            clusters.append(_cluster(SDS_CLUSTER, pipe, None))
        if self.collector_socket is not None:
            pipe = {"pipe": {"path": str(self.collector_socket)}}
            clusters.append(_cluster(COLLECTOR_CLUSTER, pipe, None))
        if self.telemetry_socket is not None:
            pipe = {"pipe": {"path": str(self.telemetry_socket)}}
            clusters.append(_cluster(TELEMETRY_CLUSTER, pipe, None, _HTTP1))
        from_ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
        return {
            "node": {
                "id": self.node_id,
                "cluster": self.cluster,
                "metadata": dict(self.metadata),
            },
            "admin": {"address": {"pipe": {"path": str(self.admin_socket), "mode": 0o600}}},
            "dynamic_resources": {
                "lds_config": from_ads,
                "cds_config": from_ads,
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [grpc_service(ADS_CLUSTER)],
                },
            },
            "static_resources": {"clusters": clusters},
            # what is sampled and tapped changes through the admin interface: no listener changes
            "layered_runtime": {
                "layers": [
                    {"name": "bedstone", "static_layer": _RUNTIME},
                    {"name": "admin", "admin_layer": {}},
                ]
            },
            "bootstrap_extensions": [
                {
                    "name": "envoy.bootstrap.internal_listener",
                    "typed_config": {
                        "@type": f"{_TYPE}extensions.bootstrap.internal_listener.v3"
                        ".InternalListener"
                    },
                }
            ],
            "overload_manager": {
                "resource_monitors": [
                    {
                        "name": "envoy.resource_monitors.global_downstream_max_connections",
                        "typed_config": {
                            "@type": f"{_TYPE}extensions.resource_monitors.downstream_connections"
                            ".v3.DownstreamConnectionsConfig",
                            "max_active_downstream_connections": self.max_connections,
                        },
                    }
                ]
            },
            # read once a second by the node's collector: each reading merges the histograms, so
            # that none is older than the reading before, and an idle proxy does no work for it
            "stats_flush_on_admin": True,
            "stats_config": {
                "stats_matcher": {
                    "inclusion_list": {"patterns": [{"safe_regex": {"regex": r}} for r in KEPT]}
                },
                # Whole milliseconds are recorded, rounded down, to two digits; a bucket has all of
                # the bin that its bound is in. So this one has what took less than its bound.
                "histogram_bucket_settings": [
                    {"match": {"suffix": "_time"}, "buckets": [b - BELOW for b in BUCKETS]}
                ],
            },
        }

    def prepare(self) -> ProcessSpec:
        """Write the bootstrap and say what to run."""
        if self.tls is not None:
            for name, secret in self._secrets(self.tls).items():
                _write(self._secret_path(name), json.dumps({"resources": [secret]}))
        elif not self.ads.path:
            raise UnavailableError("envoy needs certificates for a control plane on TCP, got none")
        text = json.dumps(self.bootstrap(), indent=1)
        _write(self.bootstrap_path, text)
        concurrency = max(1, min(self.concurrency, os.cpu_count() or 1))
        return ProcessSpec(
            name=self.name,
            argv=(
                str(envoy_program()),
                *("-c", str(self.bootstrap_path)),
                *("--concurrency", str(concurrency)),
                *("--log-level", "warning", "--component-log-level", "misc:error"),
                "--disable-hot-restart",
                *("--drain-time-s", str(self.drain_seconds), "--drain-strategy", "immediate"),
            ),
            # The digest makes another bootstrap another specification.
            env={
                "PATH": os.defpath,
                "BEDSTONE_BOOTSTRAP": hashlib.sha256(text.encode()).hexdigest(),
            },
            cwd=str(self.run_dir),
            stdout=str(self.log),
            limits=Limits(open_files=1 << 20, memory=self.memory),
            stage=STAGE_ENVOY,
            stop_grace=self.drain_seconds,
        )

    async def wait_ready(self, timeout: float = 20.0) -> None:
        """Return when Envoy is live: connected, with its first listeners and clusters."""
        deadline = time.monotonic() + timeout
        state = "not started"
        while time.monotonic() < deadline:
            try:
                state = (await self._get("/ready", timeout=1.0)).strip()
                if state == "LIVE":
                    return
            except UnavailableError as error:
                state = error.message
            await asyncio.sleep(0.01)
        raise UnavailableError(
            f"envoy is not ready after {timeout:g} s: {state}", hint=f"see {self.log}"
        )

    async def config_dump(self, mask: str | None = None) -> dict[str, Any]:
        """What Envoy has, endpoints included."""
        query = f"&mask={mask}" if mask else ""
        dump: dict[str, Any] = json.loads(await self._get(f"/config_dump?include_eds{query}"))
        return dump

    async def stats(self, pattern: str = "") -> dict[str, int | float]:
        """Counters and gauges whose name contains `pattern` (a regular expression)."""
        from urllib.parse import quote

        text = await self._get(f"/stats?format=json&usedonly&filter={quote(pattern)}")
        return {
            item["name"]: item["value"]
            for item in json.loads(text)["stats"]
            if "name" in item and isinstance(item.get("value"), int | float)
        }

    async def drain(self) -> None:
        """Ask downstream connections to end, for an orderly stop."""
        await self._call("POST", "/drain_listeners?graceful")

    async def _get(self, path: str, timeout: float = 10.0) -> str:
        return await self._call("GET", path, timeout)

    async def _call(self, method: str, path: str, timeout: float = 10.0) -> str:
        import httpx

        transport: httpx.AsyncHTTPTransport = httpx.AsyncHTTPTransport(uds=str(self.admin_socket))
        try:
            async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
                answer = await client.request(method, f"http://envoy{path}")
                return answer.text
        except (httpx.HTTPError, OSError) as error:
            raise UnavailableError(
                f"envoy's admin interface does not answer: {type(error).__name__}"
            ) from error

    def _ads_endpoint(self) -> dict[str, Any]:
        if self.ads.path:
            return {"pipe": {"path": self.ads.path}}
        return {"socket_address": {"address": self.ads.host, "port_value": self.ads.port}}

    def _ads_socket(self) -> dict[str, Any] | None:
        if self.tls is None:
            return None
        secrets = [
            {
                "name": name,
                "sds_config": {
                    "path_config_source": {"path": str(self._secret_path(name))},
                    "resource_api_version": "V3",
                },
            }
            for name in self._secrets(self.tls)
        ]
        return {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    # An upstream's maximum is TLS 1.2 unless it is named.
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "alpn_protocols": ["h2"],
                    "tls_certificate_sds_secret_configs": [secrets[0]],
                    "validation_context_sds_secret_config": secrets[1],
                },
            },
        }

    def _secret_path(self, name: str) -> Path:
        return self.run_dir / f"{self.name}-{name}.json"

    def _secrets(self, tls: AdsTls) -> dict[str, Any]:
        kind = {"@type": f"{_TYPE}extensions.transport_sockets.tls.v3.Secret"}
        watched = {"path": str(tls.certificate.parent)}
        san = "URI" if "://" in tls.server_name else "DNS"
        return {
            "certificate": kind
            | {
                "name": "certificate",
                "tls_certificate": {
                    "certificate_chain": {"filename": str(tls.certificate)},
                    "private_key": {"filename": str(tls.key)},
                    "watched_directory": watched,
                },
            },
            "authority": kind
            | {
                "name": "authority",
                "validation_context": {
                    "trusted_ca": {"filename": str(tls.authority)},
                    "watched_directory": {"path": str(tls.authority.parent)},
                    "match_typed_subject_alt_names": [
                        {"san_type": san, "matcher": {"exact": tls.server_name}}
                    ],
                },
            },
        }


def grpc_service(cluster: str) -> dict[str, Any]:
    """A gRPC service that reconnects within half a second; Envoy's default takes up to 30 s."""
    back_off = {"base_interval": "0.05s", "max_interval": "0.5s"}
    return {
        "envoy_grpc": {
            "cluster_name": cluster,
            "retry_policy": {"retry_back_off": back_off},
            "max_receive_message_length": 256 << 20,
        }
    }


_HTTP2 = {
    "explicit_http_config": {
        "http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "5s"}}
    }
}
_HTTP1 = {
    "explicit_http_config": {"http_protocol_options": {}},
    # The server closes idle connections later than this.
    "common_http_protocol_options": {"idle_timeout": "30s"},
}


def _cluster(
    name: str,
    address: dict[str, Any],
    transport_socket: dict[str, Any] | None,
    protocol: dict[str, Any] = _HTTP2,
) -> dict[str, Any]:
    options = f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    host = address.get("socket_address", {}).get("address", "")
    numeric = host.replace(".", "").isdigit() or ":" in host or not host
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                **protocol,
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }
    if transport_socket is not None:
        cluster["transport_socket"] = transport_socket
    return cluster


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    draft.replace(path)
