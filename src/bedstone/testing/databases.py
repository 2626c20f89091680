"""Real database servers for tests: PostgreSQL and MariaDB on loopback, that tests may restart.

Rules:
- A server runs as an unprivileged user, with a random password, in a folder of its own, and ends
  with its `with` block, by process id; a test that kills it starts it again with `restart`.
- Data survives what a test does: a kill of the process, not of the machine (PostgreSQL runs
  without fsync).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bedstone.engines.programs import postgres_program
from bedstone.errors import UnavailableError

_NOBODY = 65534  # neither server runs as root
_PATIENCE = 60.0


class DatabaseServer:
    """A running server.

    Args:
        url: for clients, with the password.
        arguments: its command line.
        folder: its data and log.
        ready: whether it answers.
        quick: the signal that ends it without waiting for its clients.
    """

    def __init__(
        self,
        url: str,
        arguments: Sequence[str | Path],
        folder: Path,
        ready: Callable[[], bool],
        quick: signal.Signals,
    ) -> None:
        self.url = url
        self._arguments = arguments
        self._folder = folder
        self._ready = ready
        self._quick = quick
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server said."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            if self._process is None or self._process.poll() is not None:
                # After a kill, its old helpers may hold the data for a moment yet.
                self._process = _started(self._arguments, self._folder)
            if self._ready():
                return
            time.sleep(0.05)
        raise AssertionError(f"the database server did not start: {self.log}")

    def stop(self, how: signal.Signals | None = None) -> None:
        """End it: quickly, or by another signal such as SIGKILL."""
        if self._process is None:
            return
        self._process.send_signal(how or self._quick)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self, how: signal.Signals | None = None) -> None:
        """End it and start it again, on the same port with the same data."""
        self.stop(how)
        self.start()


@contextmanager
def postgres_server(**settings: str | int) -> Iterator[DatabaseServer]:
    """A PostgreSQL server.

    Args:
        settings: of the server, such as `max_prepared_transactions=100`.
    """
    import psycopg

    with _folder("pg") as folder:
        port, password = _free_port(), secrets.token_hex(16)
        pwfile = _private(folder / "password", password)
        initdb = f"-U postgres -E UTF8 --no-sync --locale=C --auth=scram-sha-256 --pwfile={pwfile}"
        _run([postgres_program("initdb"), "-D", f"{folder / 'data'}", *initdb.split()], folder)
        options = {"fsync": "off", "max_connections": 200, "listen_addresses": "127.0.0.1"}
        given = [f"--{name}={value}" for name, value in {**options, **settings}.items()]
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

        def ready() -> bool:
            try:
                psycopg.connect(url, connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        command = [postgres_program(), "-D", folder / "data", "-p", str(port), "-k", folder]
        server = DatabaseServer(url, [*map(str, command), *given], folder, ready, signal.SIGINT)
        with _running(server):
            yield server


@contextmanager
def mariadb_server(**settings: str | int) -> Iterator[DatabaseServer]:
    """A MariaDB server with an empty database `bedstone`.

    Args:
        settings: of the server, such as `innodb_lock_wait_timeout=5`.

    Raises:
        UnavailableError: it is not installed.
    """
    import pymysql

    daemon, install = _mariadb_program("mariadbd"), _mariadb_program("mariadb-install-db")
    with _folder("mariadb") as folder:
        port, password = _free_port(), secrets.token_hex(16)
        first = _private(
            folder / "first.sql",
            "CREATE DATABASE IF NOT EXISTS bedstone CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS bedstone@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON *.* TO bedstone@'127.0.0.1' WITH GRANT OPTION;\n"
            f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n",
        )
        data = f"--datadir={folder / 'data'}"
        _run([install, "--no-defaults", data, "--skip-test-db", "--skip-name-resolve"], folder)
        options = {
            "bind-address": "127.0.0.1",
            "port": port,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "init-file": first,
            "skip-name-resolve": 1,
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
        }
        given = [f"--{name.replace('_', '-')}={v}" for name, v in {**options, **settings}.items()]
        url = f"mysql://bedstone:{password}@127.0.0.1:{port}/bedstone"

        def ready() -> bool:
            try:
                pymysql.connect(
                    host="127.0.0.1",
                    port=port,
                    user="bedstone",
                    password=password,
                    database="bedstone",
                    connect_timeout=2,
                ).close()
            except pymysql.err.Error:
                return False
            return True

        command = [str(daemon), "--no-defaults", data, *given]
        server = DatabaseServer(url, command, folder, ready, signal.SIGTERM)
        with _running(server):
            yield server


@contextmanager
def _running(server: DatabaseServer) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.stop()


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder of the server's user. Not pytest's: that is 0700, and the user must pass."""
    folder = Path(tempfile.mkdtemp(prefix=f"bedstone-{name}-"))
    try:
        if (user := _user()) is not None:
            os.chown(folder, user, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> int | None:
    return _NOBODY if os.geteuid() == 0 else None


def _private(path: Path, content: str) -> Path:
    path.touch(0o600)
    path.write_text(content)
    if (user := _user()) is not None:
        os.chown(path, user, user)
    return path


def _run(arguments: Sequence[str | Path], folder: Path) -> None:
    code = _started(arguments, folder).wait()
    if code:
        raise AssertionError(f"exit {code}: {(folder / 'log').read_text(errors='replace')}")


def _started(arguments: Sequence[str | Path], folder: Path) -> subprocess.Popen[bytes]:
    user = _user()
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd=folder,
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _mariadb_program(name: str) -> Path:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise UnavailableError(
            f"program not found: {name}", hint="install it: apt-get install mariadb-server"
        )
    return Path(found)
