"""Fixtures of all tests: real PostgreSQL and MariaDB servers for those that ask for one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from bedstone.errors import UnavailableError
from bedstone.testing.databases import mariadb_server, postgres_server

# A machine under load is no failure. CI repeats the same examples; people get new ones.
hypothesis.settings.register_profile(
    "bedstone",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("bedstone")

# A shell starts what runs beside it deaf to Ctrl-C. Tests that are interrupted take down what they
# have started.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server on loopback, stopped when the tests end."""
    with postgres_server(max_prepared_transactions=100) as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """The URL of a MariaDB server on loopback, stopped when the tests end."""
    try:
        with mariadb_server() as server:
            yield server.url
    except UnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")
