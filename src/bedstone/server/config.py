"""The server's configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bedstone.errors import InvalidError, UnavailableError
from bedstone.trust.authority import LEAF_LIFETIME


class ServerConfig(BaseModel):
    """Where the server keeps its state and listens.

    `session` is HOST:PORT of the gRPC listener for nodes and proxies, fixed for the life of a run.
    `api_listen` is HOST:PORT of the HTTPS listener with bearer tokens, if there shall be one.
    `console` is HOST:PORT on loopback of the web console, if there shall be one.
    `certificate_seconds` is how long a workload's certificate is valid; it is renewed at half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path
    run_dir: Path
    session: str
    store: str = ""
    api_socket: Path
    api_listen: str | None = None
    console: str | None = None
    certificate_seconds: float = Field(LEAF_LIFETIME.total_seconds(), ge=2)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a configuration file.

        Raises:
            UnavailableError: it cannot be read.
            InvalidError: it is not a configuration.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise UnavailableError(f"{file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise InvalidError(f"{file} is not a server's configuration: {error}") from error

    @property
    def store_url(self) -> str:
        """The store's URL; by default a SQLite file in the state directory."""
        return self.store or f"sqlite://{os.fspath(self.state_dir.absolute())}/store.sqlite"


def host_and_port(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets.

    Raises:
        InvalidError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidError(f"got address {address!r}, expected HOST:PORT")
    return host.strip("[]"), int(port)
