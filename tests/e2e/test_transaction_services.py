"""Two services, each with its database, in one transaction: over real HTTP, by the header alone.

Both are served as `run:` serves, share a log, and have no line of code about each other's part.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

pytestmark = pytest.mark.timeout(240)
PROGRAMS = Path(__file__).with_name("programs")


def until(seen: Callable[[], bool], what: str) -> None:
    """Look again and again, for 30 s at most."""
    limit = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Services:
    """`a` and `b`, each at a port with an account of 100."""

    def __init__(self, server: str, folder: Path) -> None:
        self.folder = folder
        self.log, *databases = [_database(server) for _ in range(3)]
        self.databases = dict(zip("ab", databases, strict=True))
        self.ports = {name: _port() for name in "ab"}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for url in databases:
            with psycopg.connect(url) as db:
                db.execute("CREATE TABLE account (balance INT NOT NULL, held INT NOT NULL)")
                db.execute("INSERT INTO account VALUES (100, 0)")

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def start(self, name: str) -> None:
        other = "b" if name == "a" else "a"
        environment = os.environ | {
            "DATABASE": self.databases[name],
            "PEER": self.address(other),
            "FLAGS": str(self.folder),
            "TRANSACTIONS_URL": self.log,
            "BEDSTONE_TRANSACTIONS_ADDRESS": self.address(name),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        command = [sys.executable, "-m", "bedstone.runtime.serve", "bank_service:app"]
        with (self.folder / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [*command, f"--port={self.ports[name]}"],
                cwd=PROGRAMS,
                env=environment,
                stdout=output,
                stderr=output,
            )
        until(lambda: self._open(name), f"{name} does not start: {self.output(name)}")

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait(30)

    def stop(self) -> list[int]:
        for process in self.processes.values():
            process.terminate()
        return [process.wait(30) for process in self.processes.values()]

    def output(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def post(self, path: str, timeout: float = 30.0, **parameters: str | float) -> httpx.Response:
        return httpx.post(
            f"{self.address('a')}/{path}", params=parameters, timeout=timeout, trust_env=False
        )

    def rows(self) -> list[tuple[int, int]]:
        found = []
        for url in self.databases.values():
            with psycopg.connect(url) as db:
                row = db.execute("SELECT balance, held FROM account").fetchone()
                assert row is not None
                found.append((row[0], row[1]))
        return found

    def _open(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.output(name)
        try:
            socket.create_connection(("127.0.0.1", self.ports[name]), 1).close()
        except OSError:
            return False
        return True


def _database(server: str) -> str:
    name = f"service_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    return server.rpartition("/")[0] + f"/{name}"


@contextmanager
def running(services: Services) -> Iterator[Services]:
    try:
        for name in "ab":
            services.start(name)
        yield services
    finally:
        statuses = services.stop()
    assert set(statuses) == {0}


@pytest.fixture
def services(postgres_url: str, tmp_path: Path) -> Iterator[Services]:
    with running(Services(postgres_url, tmp_path)) as it:
        yield it


def settled(services: Services, rows: list[tuple[int, int]]) -> None:
    until(lambda: services.rows() == rows, f"{services.rows()}, expected {rows}")


def test_a_transfer_commits_in_both(services: Services) -> None:
    answer = services.post("transfer", amount=30)
    assert (answer.status_code, answer.text) == (200, '"done"'), services.output("a")
    # TCC's first confirmation is awaited, here and there
    assert services.rows() == [(70, 0), (130, 0)]


def test_a_handler_in_a_thread_commits_in_both(services: Services) -> None:
    answer = services.post("transfer-blocking", amount=30)
    assert (answer.status_code, answer.text) == (200, '"done"'), services.output("a")
    assert services.rows() == [(70, 0), (130, 0)]


def test_a_service_that_fails_after_its_work_is_cancelled(services: Services) -> None:
    assert services.post("transfer", amount=30, then="fail").status_code == 500
    settled(services, [(100, 0), (100, 0)])


def test_a_refusal_here_cancels_nothing_there(services: Services) -> None:
    assert services.post("transfer", amount=300).status_code == 500
    settled(services, [(100, 0), (100, 0)])


def test_a_service_that_comes_too_late_does_not_do_its_work(services: Services) -> None:
    assert services.post("transfer-impatient", amount=30).status_code == 500
    settled(services, [(100, 0), (100, 0)])
    (services.folder / "late").touch()
    refused = services.folder / "refused"
    until(lambda: refused.exists() and refused.read_text() != "", "b never went on")
    assert refused.read_text() == "TransactionDecidedError"
    assert services.rows() == [(100, 0), (100, 0)]


def test_a_service_that_is_down_is_confirmed_when_it_is_back(services: Services) -> None:
    client = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import httpx, sys; print(httpx.post(sys.argv[1], timeout=60, trust_env=False).text)",
            f"{services.address('a')}/transfer?amount=30&then=pause",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        until((services.folder / "waits-pause").exists, "a never waited")
        services.kill("b")
        (services.folder / "pause").touch()
        output, _ = client.communicate(timeout=60)
    finally:
        client.kill()
        client.wait()
    assert output.strip() == b'"done"'
    assert services.rows() == [(70, 0), (100, 30)]
    services.start("b")
    settled(services, [(70, 0), (130, 0)])


def test_a_killed_initiator_is_aborted_by_the_other_service(services: Services) -> None:
    with pytest.raises(httpx.ReadTimeout):
        services.post("transfer", 2.0, amount=30, then="pause", deadline=4.0)
    services.kill("a")
    services.start("a")
    settled(services, [(100, 0), (100, 0)])


def test_the_endpoint_is_there_and_refuses_nonsense(services: Services) -> None:
    address = f"{services.address('b')}/.bedstone/transactions/tcc/Change"
    answer = httpx.post(address, content=b"nonsense", trust_env=False)
    assert answer.status_code == 400
    assert "message" in answer.json()["detail"]
