"""The keeper: holds an image's FUSE descriptor, and sees to it that a server answers on it.

    python -m bedstone.images.lazy.keeper DIRECTORY [--take-over | --descriptor N]

It is a daemon: the command returns once a server serves, with status 1 if none does. It mounts
DIRECTORY/blobs, answers INIT, and starts the server; one that dies is replaced, and the kernel
gives the new one what the old one had read and not answered. Readers wait for that moment and see
nothing else. It does no other work, so that nothing else can end it. When it is killed all the
same, the server becomes a keeper, with the descriptor that it has (`--descriptor`): only the death
of both at once ends a mount.

DIRECTORY/keeper.sock, for processes of the same user, takes one word a connection:

- `upgrade`: start a server of the code that is installed now, then end the old one; `ok` when done.
- `hand over`: the descriptor comes by SCM_RIGHTS, this keeper's server ends, and so does the
  keeper; the mount stays. A keeper started with `--take-over` says this.
- `here`: `ok`, which says that it lives.
- `stop`: unmount and end. SIGTERM does the same.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from bedstone import __version__
from bedstone.errors import InvalidError
from bedstone.images.lazy import fuse, kernel

_WAITS = (0.0, 0.05, 0.2, 1.0, 5.0)  # seconds before the next start of a server that dies early
_HEALTHY = 5.0  # seconds that a server must live for its death to count as the first
_FAILURES = 20  # in a row: the mount is given up, and readers get an error at last


class Keeper:
    """The loop. Everything that it does takes microseconds, but for starting a server."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._descriptor = -1
        self._resend = False
        self._server: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._failures = 0
        self._stopping = False

    def mount(self) -> None:
        """Mount the file system, and answer INIT. Raises OSError, InvalidError."""
        self._blobs.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        kernel.mount(
            "bedstone",
            self._blobs,
            "fuse",
            kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV,
            f"fd={self._descriptor},rootmode=40000,user_id={os.geteuid()},"
            f"group_id={os.getegid()},allow_other",
        )
        asked = fuse.request(os.read(self._descriptor, fuse.BUFFER))
        if asked.op != fuse.Op.INIT:
            raise InvalidError(f"the kernel's first FUSE request is {asked.op}, expected INIT")
        answer, can = fuse.init(asked)
        os.writev(self._descriptor, fuse.reply(asked.unique, [answer]))
        (self._directory / "resend").write_text("yes" if can else "no")

    def take_over(self) -> None:
        """Get the descriptor from the keeper that runs, which ends then."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            with kernel.short(self._directory) as folder:
                client.connect(f"{folder}/keeper.sock")
            client.sendall(b"hand over")
            _, descriptors, _, _ = socket.recv_fds(client, 16, 1)
            if not descriptors:
                raise InvalidError("the keeper handed no descriptor over")
            self._descriptor = descriptors[0]
            while client.recv(16):  # until it has ended
                pass

    def go_on(self, descriptor: int) -> None:
        """Keep what a killed keeper has left; the caller was its server."""
        self._descriptor = descriptor

    def run(self, ready: int) -> None:
        """Keep, until told to stop or to hand over; a byte goes to `ready` once a server serves."""
        socket_path = self._directory / "keeper.sock"
        socket_path.unlink(missing_ok=True)
        can = (self._directory / "resend").read_text() == "yes"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            selectors.DefaultSelector() as selector,
        ):
            with kernel.short(self._directory) as folder:
                listener.bind(f"{folder}/keeper.sock")
            socket_path.chmod(0o600)
            listener.listen()
            wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(wake_out)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, self._signalled)
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake_in, selectors.EVENT_READ)
            self._resend = can
            self._start(self._launch())
            if self._server is None or self._server.poll() is not None:
                self._end()
                raise InvalidError("the blob server ended at once")
            (self._directory / "version").write_text(__version__)
            os.write(ready, b"1")
            os.close(ready)
            while not self._stopping:
                for key, _ in selector.select(timeout=1.0):
                    if key.fileobj is listener:
                        self._talk(listener)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_in, 512)
                self._revive()
            self._end()

    def _signalled(self, number: int, frame: object) -> None:
        del frame
        if number != signal.SIGCHLD:
            self._stopping = True

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start a server that waits for its word."""
        argv = [sys.executable, "-m", "bedstone.images.lazy.server"]
        argv += [str(self._directory), str(self._descriptor), "--wait"]
        if self._resend:
            argv.append("--resend")
        with (self._directory / "server.log").open("ab") as log:
            server = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[self._descriptor],
            )
        self._started = time.monotonic()
        return server

    def _start(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until a launched server is ready, and let it serve."""
        self._server = server
        if server.stdout and server.stdin and server.stdout.readline():
            with contextlib.suppress(BrokenPipeError):
                server.stdin.write(b"go\n")
                server.stdin.flush()

    def _revive(self) -> None:
        server = self._server
        if self._stopping or server is None or server.poll() is None:
            return
        _close(server)
        if self._gone():
            self._stopping = True  # unmounted by somebody: the server had nothing left to do
            return
        lived = time.monotonic() - self._started
        self._failures = 0 if lived > _HEALTHY else self._failures + 1
        if self._failures > _FAILURES:
            self._stopping = True
            return
        time.sleep(_WAITS[min(self._failures, len(_WAITS) - 1)])
        self._start(self._launch())

    def _gone(self) -> bool:
        """Whether the mount is no more. Never look at its path for that: nobody would answer."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return any(found & select.POLLERR for _, found in poll.poll(0))

    def _talk(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5.0)
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            _, uid, _ = struct.unpack("3i", credentials)
            if uid != os.geteuid():
                return
            with contextlib.suppress(OSError):
                match connection.recv(16):
                    case b"here":
                        connection.sendall(b"ok")
                    case b"upgrade":
                        new = self._launch()
                        self._stop_server()
                        self._start(new)
                        connection.sendall(b"ok")
                    case b"hand over":
                        socket.send_fds(connection, [b"fd"], [self._descriptor])
                        self._stop_server()
                        os._exit(0)  # closes the connection, which says that it is done
                    case b"stop":
                        self._stopping = True
                        self._end()
                        connection.sendall(b"ok")

    def _stop_server(self) -> None:
        if self._server is None:
            return
        self._server.terminate()
        try:
            self._server.wait(15)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        _close(self._server)
        self._server = None

    def _end(self) -> None:
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            kernel.unmount(self._blobs, kernel.MNT_FORCE | kernel.MNT_DETACH)
        self._stop_server()
        os.close(self._descriptor)
        self._descriptor = -1
        (self._directory / "keeper.sock").unlink(missing_ok=True)


def _close(server: subprocess.Popen[bytes]) -> None:
    for stream in (server.stdin, server.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def main() -> int:
    """Keep the image of a directory, in a process of its own; returns once it serves."""
    directory = Path(sys.argv[1])
    ready_in, ready_out = os.pipe()
    if os.fork():
        os.close(ready_out)
        return 0 if os.read(ready_in, 1) else 1
    os.close(ready_in)
    os.setsid()
    keeper = Keeper(directory)
    match sys.argv[2:]:
        case ["--take-over"]:
            keeper.take_over()
        case ["--descriptor", number]:
            keeper.go_on(int(number))
        case _:
            keeper.mount()
    keeper.run(ready_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
