"""From a manifest's file to what is asked of the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from bedstone.model.api import ApplyRequest
    from bedstone.model.manifest import Manifest
    from bedstone.model.sources import SourceCache


def load(path: Path, gateway_port: int | None = None) -> Manifest:
    """Read a manifest, with another port for its gateway if one is given.

    Raises:
        ManifestError: it has mistakes.
        NotFoundError: there is none.
        InvalidError: a port is given and it declares no gateway, or a variable holds no URL.
    """
    from dataclasses import replace

    from bedstone.model.manifest import load_manifest
    from bedstone.model.resolving import resolve

    manifest = load_manifest(_near(path), environ=os.environ)
    manifest = replace(manifest, spec=resolve(manifest.spec, os.environ))
    if gateway_port is None:
        return manifest
    spec = manifest.spec
    if spec.gateway is None:
        raise InvalidError(
            "--gateway-port is given, but the manifest declares no gateway",
            hint="remove it, or declare a gateway with routes",
        )
    gateway = spec.gateway.model_copy(update={"port": gateway_port})
    return replace(manifest, spec=spec.model_copy(update={"gateway": gateway}))


def request_of(manifest: Manifest, cache: SourceCache | None = None) -> ApplyRequest:
    """The request to apply a manifest, with the digests of its sources as they are now.

    Args:
        manifest: the manifest.
        cache: what was read before; only what changed since is read again.
    """
    from bedstone.model.api import ApplyRequest
    from bedstone.model.sources import source_digests

    return ApplyRequest(
        spec=manifest.spec,
        root=str(manifest.root),
        sources=source_digests(manifest.root, manifest.spec, cache=cache),
    )


def _near(path: Path) -> Path:
    """Relative where it lies below the current directory, as messages should call it."""
    here = Path.cwd()
    full = path.absolute()
    return full.relative_to(here) if full.is_relative_to(here) else path
