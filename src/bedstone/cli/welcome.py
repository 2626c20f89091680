"""What `up` says of a ready app: where it is, how far to trust it, what to try. Pure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bedstone.cli.ps import cold_starts, partly, shared_users
from bedstone.cli.target import STATE_NAME, at, shown
from bedstone.cli.terminal import paint, seconds

if TYPE_CHECKING:
    from bedstone.cli.up import Options
    from bedstone.model.api import AppStatus
    from bedstone.model.manifest import Manifest


def welcome(
    status: AppStatus, manifest: Manifest, options: Options, elapsed: float, *, started: bool
) -> list[str]:
    """The lines; `started` tells whether Ctrl-C stops it."""
    lines = ["", f"{status.app} is {paint('ready')} after {seconds(elapsed)}", ""]
    if status.gateway:
        lines.append(f"  gateway     {status.gateway}")
    if options.console_port != "off":
        lines.append(f"  console     `bedstone open{at(manifest.root, '-C')}`")
    lines.append(f"  identities  {identities(status, options.isolate)}")
    if options.api_listen:
        authority = shown(manifest.root / STATE_NAME / "authority" / "root.pem")
        lines.append(f"  api         https://{options.api_listen}, CA certificate {authority}")
    lines += [f"  {line}" for line in (*shared_users(status), *cold_starts(status))]
    lines += ["", *(f"  {line}" for line in attempts(status, manifest))]
    if options.detach:
        return [*lines, f"  bedstone down{at(manifest.root)}"]
    ends = "stops it" if started else "leaves it running"
    saved = "; what you save is rolled out" if options.watch else ""
    return [*lines, "", f"Ctrl-C {ends}{saved}"]


def attempts(status: AppStatus, manifest: Manifest) -> list[str]:
    """What to try."""
    where = at(manifest.root, "-C")
    workload = next(iter(manifest.spec.workloads))
    lines = [f"bedstone ps{where}", f"bedstone logs {workload} -f{where}"]
    if status.gateway and manifest.spec.gateway:
        lines.insert(0, f"curl {status.gateway}{manifest.spec.gateway.routes[0].path}")
    return lines


def identities(status: AppStatus, isolate: str | None) -> str:
    """Whether a workload could pretend to be another, and why."""
    if status.enforced:
        return "enforced by network namespaces"
    if some := partly(status):
        return some
    if isolate == "never":
        why = "--isolate never"
    elif os.geteuid() != 0:
        why = "network namespaces need root"
    elif shared_users(status):
        why = "workloads have no users of their own"
    else:
        why = "this machine does not allow network namespaces"
    return f"cooperative, not enforced: {why}"
