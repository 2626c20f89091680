"""What tests of running apps ask of the server of a `Domain`; quicker than by a command."""

from __future__ import annotations

from typing import Any

import httpx

from bedstone.processes.state import run_directory
from bedstone.testing.domain import Domain


def server(domain: Domain, path: str, **parameters: str) -> Any:
    """What the server's API answers."""
    transport = httpx.HTTPTransport(uds=str(run_directory(domain.state) / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://api", timeout=20) as client:
        return client.get(path, params=parameters).json()
