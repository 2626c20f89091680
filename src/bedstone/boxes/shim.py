"""The parent of one stand-alone box: runs its command, keeps its output and its exit status.

A script of the standard library and of modules that need no more, started as `python -I -S shim.py
FOLDER --detach`, and independent of whoever started it. In the folder it finds `shim.json` and
makes:

- `pid`: its own process id, once `attach` can be connected to;
- `output`: what the box wrote, appended; at 16 MiB it becomes `output.1` and a new one begins;
- `attach`: a Unix socket, to see and feed the box. Frames of one byte of kind, four of length
  (big-endian) and data. To the shim: 0 input, 1 end of input, 2 size of the terminal (rows,
  columns, two bytes each), 3 signal (one byte). From it: 1 output, 2 errors, 3 the end (one byte of
  status, the last frame);
- `exit.json`: `{"code": …, "at": …}`, whole or not there.

Who attaches gets what is written from then on. A reader that is slow slows the box down, as a pipe
would.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

INPUT, END_OF_INPUT, SIZE, SIGNAL = range(4)
OUTPUT, ERRORS, EXIT = 1, 2, 3
HEADER = struct.Struct(">BI")
LIMIT = 16 << 20
_WAITING = 1 << 20
_FRAME = 1 << 20
_PATIENCE = 10.0
_LINGER = 3.0
_TOO_SOON = 1.0
_RELAYS = 3
_BLOCK = 1 << 16


class Shim:
    """One box. `run` returns when it has ended."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._tty = bool(config["tty"])
        self._waiter = selectors.DefaultSelector()
        self._clients: dict[socket.socket, tuple[bytearray, bytearray]] = {}
        self._output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._sources: dict[int, int] = {}
        self._input: int | None = None
        self._given = bytearray()
        self._closing = False
        self._child: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None
        self._relay_since = 0.0
        self._relays = _RELAYS

    def run(self) -> None:
        """Start the box and serve until it ends."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("attach")  # noqa: PTH108
        server.bind("attach")
        server.listen(16)
        server.setblocking(False)  # noqa: FBT003
        self._waiter.register(server, selectors.EVENT_READ, lambda _: self._accept(server))
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._waiter.register(wake, selectors.EVENT_READ, None)
        _write("pid", str(os.getpid()))
        if self._config["wait_for_client"]:
            while not self._clients:
                self._turn(wake, None)
        self._start_relay()
        child = self._start()
        while child.poll() is None or self._sources:
            self._turn(wake, child)
            if child.poll() is not None:
                self._flush_sources()
            elif self._relay is not None and self._relay.poll() is not None:
                self._replace_relay()
        self._stop_relay()
        code = child.returncode
        self._end(self._status(128 - code if code < 0 else code))

    def _turn(self, wake: int, child: subprocess.Popen[bytes] | None) -> None:
        for key, events in self._waiter.select():
            if key.fd == wake:
                for number in os.read(wake, 64):
                    if child is not None and number != signal.SIGCHLD:
                        child.send_signal(number)
                continue
            callback: Callable[[int], None] = key.data
            callback(events)

    def _start_relay(self) -> None:
        """Start what serves the box's ports and its proxy; what it says is kept with the output."""
        if self._config["relay"]:
            self._relay_since = time.monotonic()
            self._relay = subprocess.Popen(
                self._config["relay"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=self._config["descriptors"],
                start_new_session=True,
            )
            if self._relay.stderr is not None:
                self._source(os.dup(self._relay.stderr.fileno()), ERRORS)
                self._relay.stderr.close()

    def _replace_relay(self) -> None:
        """Start another one, which has the same sockets; but not one that cannot live."""
        if time.monotonic() - self._relay_since < _TOO_SOON:
            self._relays -= 1
        if self._relays > 0:
            self._start_relay()
        else:
            self._keep(b"bedstone: the relay of its network ends at once, its ports are closed\n")
            self._stop_relay()

    def _stop_relay(self) -> None:
        """Free the box's ports. It ends with its input, also where this process is killed."""
        if self._relay is None or self._relay.stdin is None:
            return
        for descriptor in self._config["descriptors"]:
            os.close(descriptor)
        self._relay.stdin.close()
        try:
            self._relay.wait(_LINGER)
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._relay.wait()
        self._relay = None

    def _start(self) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"env": self._config["env"], "start_new_session": True}
        if self._tty:
            master, slave = pty.openpty()
            rows, columns = self._config["size"]
            _resize(slave, rows, columns)
            child = subprocess.Popen(
                self._config["argv"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
                **options,
            )
            os.close(slave)
            self._source(master, OUTPUT)
            self._input = os.dup(master)
        else:
            feeds = bool(self._config["stdin"])
            child = subprocess.Popen(
                self._config["argv"],
                stdin=subprocess.PIPE if feeds else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **options,
            )
            for stream, kind in ((child.stdout, OUTPUT), (child.stderr, ERRORS)):
                if stream is not None:
                    self._source(os.dup(stream.fileno()), kind)
                    stream.close()
            if child.stdin is not None:
                self._input = os.dup(child.stdin.fileno())
                child.stdin.close()
        if self._input is not None:
            os.set_blocking(self._input, False)
            self._feed(0)
        self._child = child
        return child

    def _source(self, descriptor: int, kind: int) -> None:
        os.set_blocking(descriptor, False)
        self._sources[descriptor] = kind
        self._waiter.register(descriptor, selectors.EVENT_READ, lambda _: self._read(descriptor))

    def _read(self, descriptor: int) -> bool:
        if any(len(out) > _WAITING for _, out in self._clients.values()):
            time.sleep(0.005)  # the slow reader is waited for
            return True
        try:
            data = os.read(descriptor, _BLOCK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal any more
            data = b""
        if not data:
            self._waiter.unregister(descriptor)
            os.close(descriptor)
            del self._sources[descriptor]
            return False
        self._keep(data)
        for client in list(self._clients):
            self._send(client, self._sources[descriptor], data)
        return True

    def _flush_sources(self) -> None:
        """Read what the box left; what it started and left running keeps nothing open."""
        deadline = time.monotonic() + _PATIENCE
        for descriptor in list(self._sources):
            while descriptor in self._sources and self._read(descriptor):
                for client in list(self._clients):
                    self._write(client)
                    if time.monotonic() > deadline:
                        self._drop(client)
            if descriptor in self._sources:
                self._waiter.unregister(descriptor)
                os.close(descriptor)
                del self._sources[descriptor]

    def _keep(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk costs output, not the box
            os.write(self._output, data)
            if os.fstat(self._output).st_size >= LIMIT:
                os.rename("output", "output.1")  # noqa: PTH104
                os.close(self._output)
                self._output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _accept(self, server: socket.socket) -> None:
        try:
            client, _ = server.accept()
        except OSError:
            return
        client.setblocking(False)  # noqa: FBT003
        self._clients[client] = (bytearray(), bytearray())
        self._waiter.register(
            client, selectors.EVENT_READ, lambda events: self._served(client, events)
        )

    def _served(self, client: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(client)
        if events & selectors.EVENT_READ and client in self._clients:
            try:
                data = client.recv(_BLOCK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(client)
                return
            received = self._clients[client][0]
            received += data
            self._frames(client, received)

    def _frames(self, client: socket.socket, received: bytearray) -> None:
        while len(received) >= HEADER.size:
            kind, size = HEADER.unpack_from(received)
            if size > _FRAME:
                self._drop(client)
                return
            if len(received) < HEADER.size + size:
                return
            data = bytes(received[HEADER.size : HEADER.size + size])
            del received[: HEADER.size + size]
            self._told(kind, data)

    def _told(self, kind: int, data: bytes) -> None:
        if kind == INPUT:
            self._given += data
            self._feed(0)
        elif kind == END_OF_INPUT:
            self._closing = True
            self._feed(0)
        elif kind == SIZE and self._tty and len(data) == 4 and self._input is not None:
            _resize(self._input, *struct.unpack(">HH", data))
        elif kind == SIGNAL and data and self._child is not None:
            self._child.send_signal(data[0])

    def _feed(self, _: int) -> None:
        """Give the box what it can take of its input, and the rest when it can."""
        if self._input is None:
            return
        registered = self._input in self._waiter.get_map()
        try:
            while self._given:
                del self._given[: os.write(self._input, self._given[:_BLOCK])]
        except BlockingIOError:
            if not registered:
                self._waiter.register(self._input, selectors.EVENT_WRITE, self._feed)
            return
        except OSError:
            self._given.clear()
        if registered:
            self._waiter.unregister(self._input)
        if self._closing and not self._tty:
            os.close(self._input)
            self._input = None

    def _send(self, client: socket.socket, kind: int, data: bytes) -> None:
        self._clients[client][1].extend(HEADER.pack(kind, len(data)) + data)
        self._write(client)

    def _write(self, client: socket.socket) -> None:
        if client not in self._clients:
            return
        waiting = self._clients[client][1]
        try:
            while waiting:
                del waiting[: client.send(waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
        self._waiter.modify(client, events, lambda seen: self._served(client, seen))

    def _drop(self, client: socket.socket) -> None:
        if self._clients.pop(client, None) is not None:
            self._waiter.unregister(client)
            client.close()

    def _status(self, code: int) -> int:
        if code == 0 or not self._config["log"]:
            return code
        from bedstone.sandbox.failing import ended  # what is rarely needed takes no room

        return ended(code, self._config["started"], self._config["log"])

    def _end(self, code: int) -> None:
        _write("exit.json", json.dumps({"code": code, "at": time.time()}))
        for client in list(self._clients):
            client.settimeout(_PATIENCE)
            with contextlib.suppress(OSError):
                client.sendall(
                    self._clients[client][1] + HEADER.pack(EXIT, 1) + bytes([code & 255])
                )
            client.close()
        if self._config["after"]:
            subprocess.run(
                self._config["after"], stdin=subprocess.DEVNULL, check=False, capture_output=True
            )


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _write(name: str, text: str) -> None:
    draft = f".{name}.new"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.rename(draft, name)  # noqa: PTH104


def main() -> None:
    """Run the box of the folder that the first argument names; `--detach`: as nobody's child."""
    if sys.argv[2:] == ["--detach"] and os.fork() != 0:
        os._exit(0)
    # Nothing else is found: neither packages nor what is in the current folder.
    sys.path.append(os.path.realpath(f"{__file__}/../../.."))
    os.chdir(sys.argv[1])
    with open("shim.json") as file:  # noqa: PTH123
        config = json.load(file)
    Shim(config).run()


if __name__ == "__main__":
    main()
