"""A fake API and a client of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedstone.client.transport import Endpoint
from bedstone.testing.api import FakeApi, serve_fake_api


@pytest.fixture
def socket() -> Iterator[Path]:
    """A path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="bst-") as folder:
        yield Path(folder, "api.sock")


@pytest.fixture
def fake(socket: Path) -> Iterator[FakeApi]:
    with serve_fake_api(socket) as api:
        yield api


@pytest.fixture
def endpoint(socket: Path) -> Endpoint:
    return Endpoint(socket=socket)
