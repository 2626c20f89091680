"""The network of one stand-alone box: ports that it publishes, and a proxy for what it may reach.

A process of its own (`main`), started by the box's shim and ended with it. Sockets that it listens
on are made by who starts the box, so that a port that is taken is told before anything runs. A
connection to a published port becomes one to the box's port, made in the box's network namespace;
if the box does not listen there, it is reset. The proxy takes CONNECT, and requests in absolute
form (RFC 9112, 3.2.2), one for each connection; what `egress` refuses is answered with 403 and told
on standard error, once for each destination.

It has no rights once it has started: it is nobody, and only the thread that makes sockets for the
box is in the box's namespace. Only the standard library is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from bedstone.boxes import egress
from bedstone.processes import linux

_BLOCK: Final = 1 << 16
MOST: Final = 1024
"""Connections at once. What they hold is not counted as the box's memory, so that it is bounded."""
_HEAD: Final = 1 << 16
_PATIENCE: Final = 10.0
"""Seconds for a connection, and for a name."""
_HEAD_PATIENCE: Final = 30.0
_LINGER: Final = 1.0
_TOLD: Final = 256
_NOBODY: Final = 65534
_OWN: Final = ("connection", "keep-alive", "host")
"""Fields of a request that are the proxy's to say; all that begin with `proxy-` are, too."""
_REASONS: Final = {
    400: "Bad Request", 403: "Forbidden", 431: "Request Header Fields Too Large",
    502: "Bad Gateway", 504: "Gateway Timeout",
}  # fmt: skip

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Answer(Exception):  # noqa: N818 - what a client is told instead
    """A status of HTTP and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request is to go, and what of it is sent there first; nothing after CONNECT."""

    host: str
    port: int
    head: bytes | None


class Relay:
    """Connections of one box."""

    def __init__(self, config: dict[str, Any], inside: ThreadPoolExecutor) -> None:
        self._box: str = config["box"]
        self._ports: list[list[int]] = config["ports"]
        self._proxy: int | None = config["proxy"]
        self._rules = [egress.parse(text) for text in config["egress"]]
        self._newline: str = config["newline"]
        self._inside = inside
        self._told: set[str] = set()
        self._open = 0  # connections

    async def run(self, ended: asyncio.Event) -> None:
        """Serve until the box has ended, and what it sent last is passed on."""
        servers = [await self._listen(descriptor, port) for descriptor, port in self._ports]
        if self._proxy is not None:
            servers.append(await self._listen(self._proxy, None))
        await ended.wait()
        for server in servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while self._open:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def _listen(self, descriptor: int, port: int | None) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._open >= MOST:
                _reset(writer)
                return
            self._open += 1
            try:
                if port is None:
                    await self._forward((reader, writer))
                else:
                    await _join((reader, writer), await self._connect(port))
            except (OSError, TimeoutError):
                _reset(writer)
            finally:
                self._open -= 1
                writer.close()

        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)  # noqa: FBT003
        return await asyncio.start_server(serve, sock=listener, limit=_BLOCK, backlog=1024)

    async def _connect(self, port: int) -> Ends:
        """To a port of the box, from its namespace."""
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(
            self._inside, socket.socket, socket.AF_INET, socket.SOCK_STREAM
        )
        return await _connected(made, (self._box, port))

    async def _forward(self, client: Ends) -> None:
        """One request of the box to the proxy."""
        reader, writer = client
        try:
            target = await _read_head(reader)
            try:
                upstream = await self._reach(target.host, target.port)
            except egress.Refused as refusal:
                self._tell(f"egress refused: {refusal}; {refusal.more}")
                raise Answer(403, str(refusal)) from refusal
        except Answer as answer:
            await _answer(client, answer)
            return
        if target.head is None:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream[1].write(target.head)
        await _join(client, upstream)

    async def _reach(self, host: str, port: int) -> Ends:
        """Connect to a destination from this machine. Raises Refused, Answer."""
        egress.check(self._rules, host, port)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PATIENCE):
                rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Answer(502, f"{host} is not known: {error}") from error
        # A scope (fe80::1%2) is of a link, which is never public.
        found = list(dict.fromkeys(str(row[4][0]).partition("%")[0] for row in rows))
        problem = Answer(504, f"{egress.show(host, port)} does not answer")
        for address in egress.choose(self._rules, host, port, found, _own):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                made = socket.socket(family, socket.SOCK_STREAM)
                return await _connected(made, (address, port))
            except TimeoutError:
                continue
            except OSError as error:
                problem = Answer(502, f"{egress.show(host, port)}: {error.strerror or error}")
        raise problem

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < _TOLD:
            self._told.add(text)
            with contextlib.suppress(OSError):
                os.write(2, f"bedstone: {text}{self._newline}".encode())


async def _connected(made: socket.socket, address: tuple[str, int]) -> Ends:
    made.setblocking(False)  # noqa: FBT003
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().sock_connect(made, address)
        return await asyncio.open_connection(sock=made, limit=_BLOCK)
    except BaseException:
        made.close()
        raise


async def _join(one: Ends, other: Ends) -> None:
    """Pass bytes both ways; an end of one direction is passed on, a failure resets both."""
    for _, writer in (one, other):
        link = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(one[0], other[1]))
            group.create_task(_pump(other[0], one[1]))
    except* OSError:
        _reset(one[1])
        _reset(other[1])
    finally:
        other[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_BLOCK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its peer sees that it was no proper end."""
    with contextlib.suppress(OSError):
        link = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_head(reader: asyncio.StreamReader) -> Target:
    """The head of a request to the proxy. Raises Answer, OSError."""
    try:
        async with asyncio.timeout(_HEAD_PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise ConnectionResetError from error  # nothing was asked
        raise Answer(400, "the request ended within its head") from error
    except asyncio.LimitOverrunError as error:
        raise Answer(431, "the request's head is too long") from error
    if len(head) > _HEAD:
        raise Answer(431, "the request's head is too long")
    return parse_head(head)


def _own(address: str) -> bool:
    """Whether an address is this machine's: it alone can listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def parse_head(head: bytes) -> Target:
    """Where a request goes. Raises Answer if it is none for a proxy.

    Args:
        head: from the request line to the empty line.
    """
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if any(not "!" <= sign <= "~" for word in words for sign in word):
        raise Answer(400, "the request line has a character that none may have")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Answer(400, "this is a proxy for HTTP/1.1")
    method, form, version = words
    try:
        if method == "CONNECT":
            host, port = egress.split(form)
            if port is None:
                raise ValueError("CONNECT needs a port")
            return Target(egress.normal(host), port, None)
        scheme, _, rest = form.partition("://")
        if scheme.lower() != "http" or not rest:
            raise ValueError("this is a proxy: CONNECT HOST:PORT, or METHOD http://HOST/PATH")
        cut = next((place for place, sign in enumerate(rest) if sign in "/?#"), len(rest))
        authority, path = rest[:cut], rest[cut:].partition("#")[0]
        host, port = egress.split(authority)
        host = egress.normal(host)
    except ValueError as error:
        raise Answer(400, str(error)) from error
    kept = [f"{method} {path if path.startswith('/') else '/' + path} {version}"]
    for line in lines:
        name, colon, _ = line.partition(":")
        if not colon or not name or name != name.strip() or "\n" in line or "\r" in line:
            raise Answer(400, "a field of the head is none")
        if name.lower() not in _OWN and not name.lower().startswith("proxy-"):
            kept.append(line)
    kept += [f"Host: {authority}", "Connection: close", "", ""]
    return Target(host, 80 if port is None else port, "\r\n".join(kept).encode("latin-1"))


async def _answer(client: Ends, answer: Answer) -> None:
    reader, writer = client
    body = f"bedstone: {answer}\n".encode()
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    writer.write_eof()
    # What it still sends is read: a reset would take the answer from it.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while await reader.read(_BLOCK):
                pass


def become_nobody() -> None:
    """Give up every right. Threads that are in a namespace stay there."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


async def _serve(config: dict[str, Any], inside: ThreadPoolExecutor) -> None:
    ended = asyncio.Event()
    # The shim has the other end of standard input, and ends it, however it ends itself.
    asyncio.get_running_loop().add_reader(0, ended.set)
    await Relay(config, inside).run(ended)
    os._exit(0)  # threads that wait for a name are not waited for


def main() -> None:
    """Serve as the JSON object of the first argument says, until standard input ends.

    Fields: `netns`, its path; `box`, the box's address there; `ports`, pairs of a listening
    descriptor and the box's port; `proxy`, a listening descriptor or null; `egress`, rules;
    `newline`, for what is told.
    """
    config = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends after the box does
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")  # it is the first to go where the machine's memory does not suffice
    inside = ThreadPoolExecutor(
        1, initializer=linux.setns, initargs=(config["netns"], linux.CLONE_NEWNET)
    )
    inside.submit(int).result()
    "x".encode("idna")  # loaded while it can be, since nobody may read everything
    become_nobody()
    asyncio.run(_serve(config, inside))


if __name__ == "__main__":
    main()
