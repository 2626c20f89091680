"""Pulls in processes of their own that are killed at any moment: what is there is whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.images.models import Platform
from bedstone.images.opening import open_image
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore
from bedstone.testing.registry import Registry, running_registry

_LAYERS = [random.Random(seed).randbytes(1_500_000) for seed in range(4)]
_AMD = Platform(os="linux", architecture="amd64")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        running.add_image("app", _LAYERS, "1")
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "BEDSTONE_HOME": str(tmp_path / "home"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }


def start(registry: Registry, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    words = ["image", "pull", f"{registry.host}/app:1", "--platform", "linux/amd64", *more]
    return subprocess.Popen(
        [sys.executable, "-c", "from bedstone.cli.main import main; main()", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def whole(store: ContentStore) -> int:
    """Every blob that has a name is what it says; how many there are."""
    count = 0
    for digest, _ in store.blobs():
        with store.open(digest) as file:
            assert f"sha256:{hashlib.sha256(file.read()).hexdigest()}" == digest
        count += 1
    return count


def test_a_pull_that_is_killed_again_and_again_arrives_and_fetches_little_twice(
    registry: Registry, environment: dict[str, str], tmp_path: Path
) -> None:
    registry.faults.bytes_per_second = 4_000_000
    store = ContentStore(tmp_path / "home/images")
    for turn in range(3):
        process = start(registry, environment)
        before = registry.sent()
        deadline = time.monotonic() + 60
        # Into the middle of the download, and not always at the same place.
        while registry.sent() - before < 700_000 + turn * 100_000:
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            if store.usage().partial_bytes > 600_000 * (turn + 1):
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole(store)
        assert store.names() == []
    registry.faults.bytes_per_second = None
    finish(start(registry, environment, "-o", "json"))
    assert whole(store) == 6
    reference = Reference.parse(f"{registry.host}/app:1")
    assert len(open_image(store, reference, _AMD).layers) == 4
    fetched = sum(asked.sent for asked in registry.requests if "/blobs/" in asked.path)
    # What is sent and not yet written when a process dies is fetched again: buffers of sockets.
    assert fetched < 2 * sum(map(len, _LAYERS))


def test_two_processes_that_pull_at_once_fetch_once(
    registry: Registry, environment: dict[str, str]
) -> None:
    registry.faults.bytes_per_second = 6_000_000
    both = [start(registry, environment, "-o", "json") for _ in range(2)]
    answers = [finish(process) for process in both]
    assert answers[0] == answers[1]
    for layer in _LAYERS:
        digest = hashlib.sha256(layer).hexdigest()
        assert sum(asked.sent for asked in registry.requests if digest in asked.path) < 1_600_000
