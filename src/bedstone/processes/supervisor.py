"""The parent and reaper of everything in a run: `python -m bedstone.processes.supervisor`.

One thread, one selector, the standard library. It starts what its configuration names (the server
and the node) and keeps that alive; everything else it starts, signals and forgets as the node asks
through the control socket, and keeps the exit codes. When it ends in good order it stops the stages
one after another; when it is killed, the kernel's death signals and the warden end the rest.

Invariants: a name has one process; asking for the same again gives what runs (adoption); a run that
is shutting down starts nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.processes import forks, linux, netns, state
from bedstone.processes.cgroups import ControlGroups, run_key
from bedstone.processes.control import Connection, ControlServer
from bedstone.processes.identity import boot_id, read_stat
from bedstone.processes.spec import RUN_MARKER, ProcessInfo, ProcessSpec
from bedstone.processes.table import Process, ProcessTable

FIRST_DELAY = 0.05
MAX_DELAY = 5.0
STABLE_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """What a supervisor is started with.

    Args:
        run_id: identity of this run.
        state_dir: where the run's state is kept.
        run_dir: short directory for its sockets.
        processes: what it starts and keeps alive.
        starter: pid whose end ends the run in good order; None to outlive it.
    """

    run_id: str
    state_dir: str
    run_dir: str
    processes: tuple[ProcessSpec, ...] = ()
    starter: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-encodable values."""
        processes = [spec.to_json() for spec in self.processes]
        return {
            "run_id": self.run_id,
            "state_dir": self.state_dir,
            "run_dir": self.run_dir,
            "processes": processes,
            "starter": self.starter,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SupervisorConfig:
        """The reverse."""
        processes = tuple(ProcessSpec.from_json(item) for item in value.get("processes", ()))
        return cls(
            value["run_id"],
            value["state_dir"],
            value["run_dir"],
            processes,
            value.get("starter"),
        )


class Supervisor:
    """One run. `run()` returns when it has been shut down."""

    def __init__(self, config: SupervisorConfig) -> None:
        self._config = config
        self._run_dir = Path(config.run_dir)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._shutting_down = False
        self._done = False
        self._awaiting_start: dict[str, list[tuple[Connection, int]]] = {}
        self._awaiting_end: dict[str, list[tuple[Connection, int]]] = {}
        self._awaiting_shutdown: list[tuple[Connection, int]] = []
        self._wake, wake = socket.socketpair()
        self._wake.settimeout(0)
        wake.settimeout(0)
        self._wake_writer = wake
        self._lock = state.acquire(Path(config.state_dir), patience=2.0)
        state.clear(Path(config.state_dir), self._run_dir)
        state.run_directory(Path(config.state_dir))
        marker = f"{state.state_id(Path(config.state_dir))}/{config.run_id}"
        self._journal = state.journal_path(self._run_dir, config.run_id)
        self._groups = ControlGroups(run_key(*marker.split("/")))
        self._table = ProcessTable(
            marker, self._journal, self._groups, self._ended, self._selector.unregister
        )
        self._marker = marker
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        self._watch_signals()
        self._warden = -1
        self._warden_pipe = -1
        self._start_warden()
        socket_path = self._run_dir / "supervisor.sock"
        self._control = ControlServer(socket_path, self._selector, self._handle)
        stat = read_stat(os.getpid())
        state.write_run(
            state.RunInfo(
                run_id=config.run_id,
                pid=os.getpid(),
                start_time=stat[2] if stat else 0,
                boot_id=boot_id(),
                state_dir=config.state_dir,
                run_dir=config.run_dir,
                socket=str(socket_path),
                started_at=time.time(),
            )
        )
        for spec in config.processes:
            self._spawn(spec)

    def run(self) -> None:
        """Serve until shut down."""
        while not self._done:
            for key, events in self._selector.select(self._until_next_timer()):
                _guarded(partial(key.data, events))
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _guarded(heapq.heappop(self._timers)[2])
        self._finish()

    # Signals and timers.

    def _watch_signals(self) -> None:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._signalled)

    def _signalled(self, _events: int) -> None:
        try:
            numbers = self._wake.recv(4096)
        except BlockingIOError:
            return
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            if self._shutting_down:
                self._kill_all()
            self._shut_down()
        # A full buffer may have dropped a SIGCHLD, so any signal is a reason to look.
        self._table.reap()
        if self._warden > 0 and not self._table.kept(self._warden):
            self._warden = -1
            self._start_warden()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _start_warden(self) -> None:
        if self._warden_pipe >= 0:
            os.close(self._warden_pipe)
        read, self._warden_pipe = os.pipe()
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("warden.py"))]
        library_path = os.environ.get("LD_LIBRARY_PATH")
        try:
            self._warden = os.posix_spawn(
                sys.executable,
                [*program, f"{RUN_MARKER}={self._marker}", str(self._journal)],
                {"LD_LIBRARY_PATH": library_path} if library_path else {},
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
                setsid=True,
            )
            self._table.keep(self._warden)
        except OSError:
            self._after(1.0, self._start_warden)  # out of processes; the run goes on meanwhile
        finally:
            os.close(read)

    # Processes.

    def _spawn(self, spec: ProcessSpec) -> Process:
        if self._shutting_down:
            raise UnavailableError("the supervisor is shutting down")
        found = self._table.by_name.get(spec.name)
        if found is not None and (found.info.running or self._restarts(found)):
            if found.info.spec_digest == spec.digest():
                return found
            raise ConflictError(
                f"process {spec.name} already runs with another specification",
                hint="stop it first, or use another name",
            )
        info = ProcessInfo(
            spec.name, "failed", spec.digest(), restart=spec.restart, stage=spec.stage
        )
        process = Process(spec, info)
        self._table.by_name[spec.name] = process
        self._start(process)
        return process

    def _start(self, process: Process) -> None:
        try:
            self._table.start(process)
        except OSError as error:
            self._not_started(process, error)
            return
        self._listen(process)
        if process.fork is not None:
            launch = process.launch
            self._after(forks.PATIENCE, lambda: self._give_up(process, launch))

    def _listen(self, process: Process) -> None:
        self._selector.register(
            process.report, selectors.EVENT_READ, lambda _events: self._reported(process)
        )

    def _reported(self, process: Process) -> None:
        forking = process.fork is not None
        try:
            done = self._table.read_report(process)
        except OSError as error:
            self._not_started(process, error)
            return
        if forking and process.fork is None and process.report >= 0:
            self._listen(process)  # its zygote refused, and it was launched instead
        if done and process.info.message is None:
            self._control.broadcast("started", process.info.to_json())
            self._settle(self._awaiting_start, process)

    def _give_up(self, process: Process, launch: int) -> None:
        """Its zygote has had its time: launch it instead."""
        if process.launch != launch or process.fork is None or process.fork.child is not None:
            return
        try:
            reason = f"its zygote did not answer within {forks.PATIENCE:g} s"
            self._table.fall_back(process, reason)
        except OSError as error:
            self._not_started(process, error)
            return
        self._listen(process)

    def _not_started(self, process: Process, error: OSError) -> None:
        message = f"cannot start a process: {error.strerror}"
        process.info = replace(process.info, state="failed", message=message)
        self._ended(process)

    def _ended(self, process: Process) -> None:
        self._control.broadcast(process.info.state, process.info.to_json())
        self._settle(self._awaiting_start, process)
        self._settle(self._awaiting_end, process)
        if self._restarts(process):
            self._restart_later(process)
        if self._shutting_down:
            self._advance()

    def _restarts(self, process: Process) -> bool:
        return process.spec.restart == "always" and not process.stopping and not self._shutting_down

    def _restart_later(self, process: Process) -> None:
        info = process.info
        lived = (info.exited_at or 0.0) - (info.started_at or 0.0)
        stable = info.state == "exited" and lived >= STABLE_AFTER
        process.delay = FIRST_DELAY if stable or not process.delay else process.delay * 2
        process.delay = min(process.delay, MAX_DELAY)

        def restart() -> None:
            current = self._table.by_name.get(process.spec.name) is process
            if current and self._restarts(process) and not process.info.running:
                process.info = replace(
                    process.info,
                    restarts=process.info.restarts + 1,
                    previous=process.info.ending(),
                )
                self._start(process)

        self._after(process.delay, restart)

    def _stop(self, process: Process, grace: float | None = None) -> None:
        process.stopping = True
        launch, pid = process.launch, process.pid
        if pid is None:
            self._table.cancel(process)
            return
        os.kill(pid, process.spec.stop_signal)
        # A stopped process would not see it.
        os.kill(pid, signal.SIGCONT)

        def insist() -> None:
            if process.launch == launch and process.pid is not None:
                self._table.kill_group(process.pid)

        self._after(process.spec.stop_grace if grace is None else grace, insist)

    # Shutdown.

    def _shut_down(self) -> None:
        if not self._shutting_down:
            self._shutting_down = True
            for process in tuple(self._table.by_name.values()):
                self._table.cancel(process)
            self._advance()

    def _advance(self) -> None:
        running = list(self._table.running())
        if not running:
            self._done = True
            return
        stage = min(process.spec.stage for process in running)
        for process in running:
            if process.spec.stage == stage and not process.stopping:
                self._stop(process)

    def _kill_all(self) -> None:
        for process in self._table.running():
            process.stopping = True
            if process.pid is not None:
                self._table.kill_group(process.pid)

    def _finish(self) -> None:
        deadline = time.monotonic() + 10.0
        while self._table.kill_children() and time.monotonic() < deadline:
            time.sleep(0.005)
            self._table.reap()
        self._groups.close()
        os.write(self._warden_pipe, b"done\n")
        os.close(self._warden_pipe)
        if self._table.kept(self._warden):
            os.waitpid(self._warden, 0)
        Path(self._config.state_dir, "run.json").unlink(missing_ok=True)
        state.remove_run_directory(self._run_dir)
        # Last, so that a client that hears of the end finds nothing left.
        os.close(self._lock)
        for connection, number in self._awaiting_shutdown:
            connection.answer(number, None)
        self._control.close()

    # Operations.

    def _handle(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        operation = getattr(self, f"op_{request.get('op')}", None)
        try:
            if operation is None:
                raise InvalidError(f"no such operation: {request.get('op')}")
            operation(connection, number, request)
        except Error as error:
            connection.fail(number, error)
        except (KeyError, TypeError, ValueError) as error:
            connection.fail(number, InvalidError(f"malformed request: {error!r}"))
        except OSError as error:
            connection.fail(number, UnavailableError(f"{request.get('op')}: {error}"))

    def _settle(self, waiting: dict[str, list[tuple[Connection, int]]], process: Process) -> None:
        for connection, number in waiting.pop(process.spec.name, ()):
            connection.answer(number, process.info.to_json())

    def _named(self, request: dict[str, Any]) -> Process:
        name = str(request["name"])
        process = self._table.by_name.get(name)
        if process is None:
            raise NotFoundError(f"no process is named {name}")
        return process

    def op_ping(self, connection: Connection, number: int, _request: dict[str, Any]) -> None:
        """Answer with the run's identity."""
        connection.answer(number, {"run_id": self._config.run_id, "pid": os.getpid()})

    def op_spawn(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Answered when the program runs or has failed to."""
        process = self._spawn(ProcessSpec.from_json(request["spec"]))
        if process.report >= 0:
            self._awaiting_start.setdefault(process.spec.name, []).append((connection, number))
        else:
            connection.answer(number, process.info.to_json())

    def op_signal(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Signal a process that runs."""
        process = self._named(request)
        if process.pid is None:
            raise ConflictError(f"process {process.spec.name} does not run")
        os.kill(process.pid, int(request["signal"]))
        connection.answer(number, process.info.to_json())

    def op_stop(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Answered when the process has ended."""
        process = self._named(request)
        grace = request.get("grace")
        self._stop(process, None if grace is None else float(grace))
        if process.pid is None:
            connection.answer(number, process.info.to_json())
        else:
            self._awaiting_end.setdefault(process.spec.name, []).append((connection, number))

    def op_forget(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Drop the record of a process that has ended; nothing to do if there is none."""
        name = str(request["name"])
        process = self._table.by_name.get(name)
        if process is not None:
            if process.info.running or self._restarts(process):
                raise ConflictError(f"process {name} runs", hint="stop it first")
            del self._table.by_name[name]
            self._control.broadcast("forgotten", process.info.to_json())
        connection.answer(number, None)

    def op_get(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """One process."""
        connection.answer(number, self._named(request).info.to_json())

    def op_list(self, connection: Connection, number: int, _request: dict[str, Any]) -> None:
        """Every process."""
        infos = [process.info.to_json() for process in self._table.by_name.values()]
        connection.answer(number, infos)

    def op_watch(self, connection: Connection, number: int, _request: dict[str, Any]) -> None:
        """What is, as `current` events, then `synced`, then what changes."""
        connection.answer(number, None)
        for process in self._table.by_name.values():
            connection.event("current", process.info.to_json())
        connection.event("synced")
        connection.watching = True

    def op_netns_create(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Make a network namespace of the run, and answer with its path."""
        path = self._netns_path(request)
        owner = request.get("userns")
        netns.create_netns(path, None if owner is None else Path(str(owner)))
        connection.answer(number, str(path))

    def op_netns_delete(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        """Let go of a network namespace."""
        netns.delete_netns(self._netns_path(request))
        connection.answer(number, None)

    def op_userns_create(
        self, connection: Connection, number: int, request: dict[str, Any]
    ) -> None:
        """Make a user namespace of the run, which stays until its end; answer with its path."""
        path = self._namespace_path("userns", request)
        netns.create_userns(path, int(request["first"]), int(request["count"]))
        connection.answer(number, str(path))

    def _netns_path(self, request: dict[str, Any]) -> Path:
        return self._namespace_path("netns", request)

    def _namespace_path(self, kind: str, request: dict[str, Any]) -> Path:
        name = str(request["name"])
        if not name or "/" in name or name.startswith("."):
            raise InvalidError(f"a namespace needs a plain name, got {name!r}")
        return self._run_dir / kind / name

    def op_shutdown(self, connection: Connection, number: int, _request: dict[str, Any]) -> None:
        """Stop stage after stage; answered when nothing is left."""
        self._awaiting_shutdown.append((connection, number))
        self._shut_down()


def _guarded(action: Callable[[], object]) -> None:
    """Do it; a bug of ours in one request must not take the whole run with it."""
    try:
        action()
    except Exception:  # noqa: BLE001 - see above
        import traceback

        traceback.print_exc()
        time.sleep(0.05)  # what can't be handled would come again at once


def main() -> int:
    """Read the configuration, run, and say at once if that is not possible."""
    parser = argparse.ArgumentParser(description="parent of every process of a Bedstone run")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()

    def say(value: dict[str, Any]) -> None:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, json.dumps(value).encode() + b"\n")
            os.close(arguments.ready_fd)

    try:
        if arguments.ready_fd is not None:
            os.set_inheritable(arguments.ready_fd, False)  # noqa: FBT003 - no keyword
        config = SupervisorConfig.from_json(json.loads(arguments.config.read_text()))
        if config.starter is not None:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != config.starter:
                return 0
        supervisor = Supervisor(config)
    except Error as error:
        say({"code": error.code, "message": error.message, "hint": error.hint})
        return 1
    except OSError as error:
        say({"code": UnavailableError.code, "message": f"supervisor: {error}", "hint": None})
        return 1
    run = state.read_run(Path(config.state_dir))
    say({"run": asdict(run) if run else None})
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
