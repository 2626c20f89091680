"""What a sandbox is: one way to run an instance apart from everything else on its node.

A sandbox owns an instance's network (addresses, or a whole network namespace), its user, and the
specification of its process. Parenting is the supervisor's; when to start and stop is the node's.

Rules:
- What a sandbox cannot enforce it says, in `Started.limits` and `enforced`; it never pretends.
- `allot`, `start` and `stop` are idempotent by the instance's path: an agent that died in between
  repeats them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from bedstone.drivers import Kind
from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.processes.spec import ProcessInfo, ProcessSpec
from bedstone.sandbox.box import Stats
from bedstone.sandbox.ports import Ports


class ImageRoot(Protocol):
    """The root file system of an image, and how its author wants programs in it to be run."""

    @property
    def path(self) -> Path:
        """Its directory, which nobody writes to."""
        ...

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """What comes before the command."""
        ...

    @property
    def command(self) -> tuple[str, ...]:
        """What runs when nothing else is asked for."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """Variables."""
        ...

    @property
    def cwd(self) -> str:
        """Working directory."""
        ...

    @property
    def user(self) -> str:
        """`NAME[:GROUP]` or numbers; empty is root."""
        ...

    @property
    def image(self) -> str:
        """Its name."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user should know."""
        ...

    @property
    def digest(self) -> str:
        """Of the content that the name means here."""
        ...


class Images(Protocol):
    """What a sandbox needs of the images of this machine."""

    async def find(
        self, image: str, holder: str, tell: Callable[[str], None], *, lazy: bool
    ) -> ImageRoot:
        """The root of an image, fetched if it is not here, and kept for `holder`.

        May be cancelled.

        Args:
            image: its name.
            holder: who needs it, until `let_go`.
            tell: is told, for people, what is waited for.
            lazy: whether it may be there before all of it is.

        Raises:
            Error: it cannot be had, or a policy refuses it.
        """
        ...

    async def let_go(self, holder: str) -> None:
        """The holder needs its image no longer. Idempotent."""
        ...

    async def let_go_all(self, beginning: str) -> None:
        """Nor does any holder whose name begins so. Idempotent."""
        ...

    def user(self, root: ImageRoot) -> tuple[int, int]:
        """The user and group that the image's author wants. Raises InvalidError."""
        ...


class Processes(Protocol):
    """What a sandbox and a node need of the supervisor."""

    async def spawn(self, spec: ProcessSpec) -> ProcessInfo:
        """Start a process, or answer with the one of that name and digest that runs already."""
        ...

    async def stop(self, name: str, grace: float | None = None) -> ProcessInfo:
        """Stop signal, SIGKILL after `grace` seconds; answers once it has ended."""
        ...

    async def forget(self, name: str) -> None:
        """Drop the record of a process that has ended. Idempotent."""
        ...

    async def list(self) -> list[ProcessInfo]:
        """Every process, ended ones included until they are forgotten."""
        ...

    async def create_netns(self, name: str, userns: str | None = None) -> Path:
        """A network namespace with loopback up; UnavailableError without the privilege.

        `userns` is the path of the user namespace that owns it; None for the node's own.
        """
        ...

    async def create_userns(self, name: str, first: int, count: int) -> Path:
        """A user namespace whose root is the user `first`, with `count` - 1 more. Idempotent."""
        ...

    async def delete_netns(self, name: str) -> None:
        """Let go of it. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Host:
    """What a sandbox has of its node.

    Attributes:
        processes: the supervisor.
        ports: of the node's own network.
        address: the node's, where other nodes reach it.
        run_dir: short directory for files of this run.
        serve: the command line that serves an ASGI application, from the interpreter, the
            application as `module:attribute`, the host and the port.
        enforce: `auto` uses what privileges allow, `never` does without.
        runtime: the modules that `serve` loads, for interpreters that are forked.
        libraries: a path list, searched last by an interpreter that has not those modules.
        private: folders of Bedstone's own, which no instance needs to see.
        boxes: the folder of all boxes of this machine.
        images: its images; None where there are none.
    """

    processes: Processes
    ports: Ports
    address: str
    run_dir: Path
    serve: Callable[[str, str, str, int], Sequence[str]]
    enforce: Literal["auto", "never"] = "auto"
    runtime: Sequence[str] = ()
    libraries: str = ""
    private: Sequence[Path] = ()
    boxes: Path = Path("/var/lib/bedstone/boxes")
    images: Images | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """Everything about one instance that its process is made from.

    Attributes:
        instance: which.
        revision: what it runs.
        plumbing: its addresses.
        databases: for each database in `uses`, its URL with the workload's credentials.
        log: the file that its output is appended to.
        domain: the trust domain.
        xds: `HOST:PORT` of the server's ADS, for gRPC clients without a proxy.
        identity: PEM of the key, the chain and the bundle; None where it has none yet.
    """

    instance: Instance
    revision: Revision
    plumbing: Plumbing
    databases: Mapping[str, str] = field(default_factory=dict, repr=False)
    log: Path = Path("/dev/null")
    domain: str = ""
    xds: str = ""
    identity: tuple[str, str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Started:
    """A process that runs, and what its limits and isolation came to.

    `enforced`: it has a network and a user of its own, so that it can act as nobody else.
    """

    info: ProcessInfo
    enforced: bool
    limits: tuple[str, ...] = ()


class Sandbox(Protocol):
    """One kind of isolation on one node."""

    async def open(self) -> None:
        """Find out what this machine allows. Called once, before anything else."""
        ...

    @property
    def enforced(self) -> bool:
        """Whether the network itself says who calls, rather than a credential."""
        ...

    async def allot(
        self,
        instance: Instance,
        workloads: Sequence[str],
        databases: Sequence[str],
        previous: Plumbing | None,
        *,
        warm: bool = False,
    ) -> Plumbing:
        """Addresses for an instance that uses those workloads and databases.

        Args:
            instance: whose.
            workloads: names of `uses` that are workloads.
            databases: names of `uses` that are databases.
            previous: what it had; kept where it fits.
            warm: whether it is to be forked from an interpreter that is warm.

        Raises:
            UnavailableError: no port is free, or the network cannot be made.
        """
        ...

    async def fetch(self, unit: Unit, tell: Callable[[str], None]) -> None:
        """Have here what the instance is started from; may take long, and may be cancelled.

        `tell` is told, for people, what is waited for.

        Raises:
            Error: it cannot be had, or a policy refuses it.
        """
        ...

    async def start(self, unit: Unit) -> Started:
        """Start the instance's process; the one that runs already, if it is the same.

        Raises:
            InvalidError: it can never run as declared.
            UnavailableError: it could not be started now.
        """
        ...

    async def run(self, unit: Unit, name: str, command: Sequence[str]) -> ProcessInfo:
        """Start a command beside the instance, in its network and environment, as process `name`.

        Its output goes where the instance's goes. The end is seen through the supervisor.
        """
        ...

    async def ending(self, instance: Instance, info: ProcessInfo) -> str:
        """How the instance's process ended, for people; with the limit that ended it, if one did.

        Before anything else is done with the instance.
        """
        ...

    async def stats(self, instance: Instance) -> Stats | None:
        """What a running instance uses; None where its processes tell.

        Raises:
            Error: it cannot be told now.
        """
        ...

    async def stop(self, instance: Instance, grace: float) -> None:
        """End the instance's process: politely, and after `grace` seconds by force."""
        ...

    async def release(self, instance: Instance, plumbing: Plumbing | None) -> None:
        """Give everything back that `allot` took. The process has ended."""
        ...

    def refresh(self, unit: Unit) -> None:
        """Replace the files of the identity that a running instance reads."""
        ...

    def usable(self, plumbing: Plumbing) -> bool:
        """Whether the proxy could still listen on the addresses: nothing else holds them."""
        ...

    def app_port_free(self, plumbing: Plumbing) -> bool:
        """Whether the program could listen on its port now."""
        ...

    def socket(self, address: Address) -> socket.socket:
        """A TCP socket, not yet connected, in the network where `address` is."""
        ...


KIND: Kind[Sandbox] = Kind(
    "sandbox",
    {
        "process": "bedstone.sandbox.process:ProcessSandbox",
        "container": "bedstone.sandbox.boxed:container",
        "gvisor": "bedstone.sandbox.boxed:gvisor",
        "microvm": "bedstone.sandbox.boxed:microvm",
    },
)
"""Sandboxes by the name that `isolation:` gives them; each is constructed with a `Host`."""


def process_name(instance: Instance) -> str:
    """What the supervisor calls the process of an instance."""
    return f"instance/{instance.path}"


def split_uses(unit_uses: Sequence[str], databases: Sequence[str]) -> tuple[list[str], list[str]]:
    """The workloads and the databases among `uses`."""
    known = set(databases)
    return [name for name in unit_uses if name not in known], [
        name for name in unit_uses if name in known
    ]
