"""A real Prometheus for tests, on loopback, which takes remote-write."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from bedstone.control.monitoring.reading import Reader
from bedstone.control.monitoring.remote_write import Encoder
from bedstone.testing.domain import free_port

MISSING: Final = "prometheus is not installed (Debian: apt-get install prometheus)"
_PATIENCE: Final = 30.0


def missing() -> bool:
    """Whether the programs are not there."""
    return shutil.which("prometheus") is None or shutil.which("promtool") is None


@dataclass(frozen=True, slots=True)
class RealPrometheus:
    """One that runs."""

    url: str
    client: httpx.Client

    def bytes(self, path: str, **parameters: str) -> bytes:
        """What its API answers."""
        return self.client.post(f"{self.url}/api/v1/{path}", data=parameters).content

    def data(self, path: str, **parameters: str) -> Any:
        """The same, read; a failure is a `ValueError`."""
        body = json.loads(self.bytes(path, **parameters))
        if body["status"] != "success":
            raise ValueError(body["error"])
        return body["data"]

    def write(self, reader: Reader, after: int, upto: int) -> None:
        """Send it the seconds of a reader by remote-write."""
        for body in Encoder().bodies(reader, after, upto):
            response = self.client.post(
                f"{self.url}/api/v1/write",
                content=body.content,
                headers={"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"},
            )
            response.raise_for_status()


@contextmanager
def real_prometheus(
    directory: Path, configuration: str = "", *flags: str, port: int = 0
) -> Iterator[RealPrometheus]:
    """Start one and stop it.

    Args:
        directory: empty; for its data and its log.
        configuration: YAML; without, it scrapes nothing.
        flags: more of its flags.
        port: where it listens; a free one by default.
    """
    file = directory / "prometheus.yml"
    file.write_text(configuration or "global: {}\n")
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-remote-write-receiver",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
        try:
            _wait(url, process, directory / "prometheus.log")
            with httpx.Client(timeout=60) as client:
                yield RealPrometheus(url, client)
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"Prometheus does not start: {log.read_text()[-2000:]}")
