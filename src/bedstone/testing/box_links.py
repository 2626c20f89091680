"""Checks of `bedstone.testing.boxes`: the network between a box and its namespace."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from bedstone.errors import NotFoundError
from bedstone.processes.netns import create_netns, delete_netns, unmount_below
from bedstone.sandbox.links import inside
from bedstone.testing.boxes import PERMISSIVE, Check, World

_SERVING: Final = "echo ready; while :; do nc -l -p 8090 -e echo of the box; done"
_PATIENCE: Final = 10.0


@contextmanager
def namespaces(folder: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Network namespaces with nothing but loopback; their paths."""
    place = folder / "networks"
    place.mkdir()
    try:
        for name in names:
            create_netns(place / name)
        yield tuple(str(place / name) for name in names)
    finally:
        for name in names:
            delete_netns(place / name)
        unmount_below(place)


def serve(stack: ExitStack, address: str, netns: str | None = None) -> socket.socket:
    """A listener, in a namespace or out here, for as long as `stack` is open."""

    def listen() -> socket.socket:
        return socket.create_server((address, 0))

    server = listen() if netns is None else inside(netns, listen)
    server.settimeout(_PATIENCE)
    return stack.enter_context(server)


def port_of(server: socket.socket) -> int:
    """The port that it listens on."""
    return int(server.getsockname()[1])


def answer(server: socket.socket, text: bytes) -> None:
    """Take one connection and say something."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(text)


async def fetch(netns: str, address: str, port: int) -> bytes:
    """What a server says to a client in a namespace, once there is one."""

    def call() -> bytes:
        with suppress(OSError), socket.create_connection((address, port), 2) as connection:
            return connection.recv(100)
        return b""

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        said = await asyncio.to_thread(lambda: inside(netns, call))
        if said:
            return said
        await asyncio.sleep(0.05)
    return b""


def interfaces(netns: str) -> list[str]:
    """The names of those of a namespace."""
    return inside(netns, lambda: [name for _, name in socket.if_nameindex()])


def tried(*addresses: str) -> set[str]:
    """Where something of this machine may be: also what machines and clouds have by custom."""
    found = {*addresses, "127.0.0.1", "10.0.2.2", "169.254.169.254"}
    with suppress(OSError):
        found.add(socket.gethostbyname(socket.gethostname()))
    return found


async def is_linked_to_its_namespace(world: World) -> None:
    """A box and its namespace find each other where `link` says, also after another start.

    Nothing else is reached: no listener of this machine or of another namespace, nor any address
    of theirs.
    """
    try:
        await world.boxes.link(str(world.folder / "none"))
    except NotFoundError:
        pass
    else:
        raise AssertionError("a namespace that is not there was linked")
    with ExitStack() as stack:
        given, other = stack.enter_context(namespaces(world.folder, "given", "other"))
        link = await world.boxes.link(given)
        assert await world.boxes.link(given) == link
        assert await world.boxes.link(other) == link
        # Before the box is there.
        server = serve(stack, link.namespace, given)
        closed = [serve(stack, "0.0.0.0"), serve(stack, "0.0.0.0", other)]  # noqa: S104
        policy = replace(PERMISSIVE, network="given")
        spec = world.spec(_SERVING, netns=given, policy=policy)
        for start in range(2):
            box = await world.launch(spec)
            await box.said("ready")
            assert await fetch(given, link.box, 8090) == b"of the box\n"
            answering = asyncio.to_thread(answer, server, bytes(3_000_000))
            call = f"nc -w 5 {link.namespace} {port_of(server)} </dev/null | wc -c"
            (_, output, errors), _ = await asyncio.gather(world.exec(box, call), answering)
            assert output.strip() == "3000000", errors
            if start == 0:
                await world.boxes.signal(spec.id, 9)
                await box.end()
        ports = " ".join(str(port_of(each)) for each in closed)
        _, output, _ = await world.exec(
            box,
            f"for a in {' '.join(tried(link.namespace, link.box))}; do for p in {ports}; do "
            "(nc -w 1 $a $p </dev/null && echo reached $a:$p) & done; done; wait",
        )
        assert "reached" not in output, output
        await world.boxes.delete(spec.id)
        assert interfaces(given) == ["lo"]
        for delay in (0.0, 0.05, 0.1):  # cut off wherever it is
            box = await world.launch(replace(spec, id=world.spec().id))
            await asyncio.sleep(delay)
            box.process.kill()
            await world.boxes.delete(box.spec.id)
            assert interfaces(given) == ["lo"]


CHECKS: Final[dict[str, Check]] = {check.__name__: check for check in (is_linked_to_its_namespace,)}
