"""The environment of an instance: how it finds its port, its proxy and what it uses.

Precedence: what the manifest's `env:` says wins over everything but `PORT` and `BEDSTONE_…`, which
are facts. Nothing else of the node's own environment is passed on than what `INHERITED` names.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from bedstone.errors import InvalidError
from bedstone.model.interpolation import Reference, interpolate
from bedstone.model.resources import Address, Plumbing
from bedstone.sandbox.protocol import Unit

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
# Libraries that a distribution's Python or a TLS client cannot do without where they are set.
INHERITED_PATHS = ("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
NO_PROXY = "localhost,127.0.0.1,::1"


def variable(name: str) -> str:
    """`my-ledger` as the start of a variable's name: `MY_LEDGER`."""
    return name.upper().replace("-", "_")


def environment(unit: Unit, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The complete environment of the unit's process.

    Args:
        unit: the instance.
        base: the node's own environment.

    Raises:
        InvalidError: `env:` refers to something that has no value.
    """
    base = os.environ if base is None else base
    plumbing = unit.plumbing
    result = {name: base[name] for name in (*INHERITED, *INHERITED_PATHS) if name in base}
    result.setdefault("PATH", os.defpath)
    result["PYTHONUNBUFFERED"] = "1"
    proxy = proxy_url(plumbing)
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        result[name] = result[name.lower()] = proxy
    direct = plumbing.outbound.host
    own = NO_PROXY if direct.startswith("127.") else f"{NO_PROXY},{direct}"
    result["NO_PROXY"] = result["no_proxy"] = own
    for name, address in plumbing.services.items():
        result[f"{variable(name)}_URL"] = f"http://{_host_port(address)}"
    for name, url in unit.databases.items():
        result[f"{variable(name)}_URL"] = url
    if plumbing.telemetry is not None:
        result["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{_host_port(plumbing.telemetry)}"
    for name, text in unit.revision.spec.env.items():
        result[name] = interpolate(text, lambda reference: lookup(reference, unit, base))
    result["PORT"] = str(plumbing.app.port)
    result["BEDSTONE_APP"] = unit.instance.app
    result["BEDSTONE_CELL"] = unit.instance.cell
    result["BEDSTONE_WORKLOAD"] = unit.instance.workload
    result["BEDSTONE_INSTANCE"] = unit.instance.name
    result["BEDSTONE_REVISION"] = unit.instance.revision
    return result


def lookup(reference: Reference, unit: Unit, base: Mapping[str, str]) -> str | None:
    """The value of a reference in `env:`; None where there is none."""
    if reference.scope == "env":
        return base.get(reference.name)
    url = unit.databases.get(reference.name)
    if url is None:
        raise InvalidError(
            f"{reference.text} names a database that the workload does not use",
            hint=f"add {reference.name} to its `uses`",
        )
    if reference.field == "url":
        return url
    parts = urlsplit(url)
    fields = {
        "host": parts.hostname or "",
        "port": str(parts.port or 5432),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "name": unquote(parts.path.lstrip("/")),
    }
    return fields[reference.field]


def credential(user: str, password: str) -> str:
    """The value of `Proxy-Authorization` (RFC 7617) that a client derives from its proxy's URL."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def proxy_url(plumbing: Plumbing) -> str:
    """The URL of the instance's proxy, with its credential if it needs one."""
    place = _host_port(plumbing.outbound)
    if plumbing.credential is None:
        return f"http://{place}"
    pair = base64.b64decode(plumbing.credential.removeprefix("Basic ")).decode()
    user, _, password = pair.partition(":")
    return f"http://{quote(user, safe='')}:{quote(password, safe='')}@{place}"


def _host_port(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
