"""The node agent's configuration file: JSON, written by `bedstone up` or by an operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bedstone.errors import InvalidError
from bedstone.sandbox.ports import DEFAULT_RANGE


class NodeConfig(BaseModel):
    """What a node agent is told.

    Attributes:
        name: the node's.
        address: where other nodes reach it.
        state_dir: what survives a restart.
        run_dir: short directory for sockets.
        api: path of the server's Unix socket, or its `https://` URL.
        token_file: file with the API's token, for a URL.
        ca_file: PEM of the authorities that the API's certificate is verified with, for a URL.
        supervisor: path of the supervisor's socket.
        enforce: `auto` isolates networks and users where privileges allow, `never` does not.
        port_range: first and last port for instances on this machine.
        gateway: whether its proxy opens gateways.
        lease: seconds without a sign of life after which the server gives the node up.
        run_id: identity of the supervisor's run.
        boxes: the folder of the boxes of this machine; None for the usual one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    address: str = "127.0.0.1"
    state_dir: Path
    run_dir: Path
    api: str
    token_file: Path | None = None
    ca_file: Path | None = None
    supervisor: Path
    enforce: Literal["auto", "never"] = "auto"
    port_range: tuple[int, int] = DEFAULT_RANGE
    gateway: bool = True
    lease: float = Field(default=10.0, gt=0)
    run_id: str = ""
    boxes: Path | None = None

    @property
    def private(self) -> Path:
        """Keys, credentials and records: mode 0700."""
        return self.state_dir / "node"

    @property
    def logs(self) -> Path:
        """Output of instances and engines."""
        return self.state_dir / "logs"

    @property
    def sds(self) -> Path:
        """The socket of the secret discovery service."""
        return self.run_dir / "sds.sock"

    @property
    def collector(self) -> Path:
        """The socket on which the collector takes spans and access logs (OTLP over gRPC)."""
        return self.run_dir / "collector.sock"

    @property
    def telemetry(self) -> Path:
        """The socket on which the collector takes what instances send (OTLP over HTTP)."""
        return self.run_dir / "telemetry.sock"

    @property
    def calls(self) -> Path:
        """The directory of the sockets through which calls from outside enter the mesh."""
        return self.run_dir / "calls"


def load_config(path: Path) -> NodeConfig:
    """Read a configuration file.

    Raises:
        InvalidError: it cannot be read or is not one.
    """
    try:
        return NodeConfig.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise InvalidError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InvalidError(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidError(f"{path}: {where}: {first['msg']}") from error
