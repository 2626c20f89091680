"""What the supervisor takes from a zygote, which may offer anything."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from bedstone.processes import forks
from bedstone.processes.spec import ProcessSpec

SPEC = ProcessSpec("x", (sys.executable, "-c", "pass"), cwd="/")


def _open() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_a_child_that_is_offered_is_taken_and_the_zygote_told() -> None:
    ours, theirs = forks.channel()
    end, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, child:
        with end:
            socket.send_fds(theirs, [b"{}"], [end.fileno()])
        with forks.ask(ours, SPEC).link as link:
            assert not os.get_inheritable(link.fileno())
            child.send(b"hello")
            assert link.recv(9) == b"hello"
        message, handles, _, _ = socket.recv_fds(theirs, 9, 1)
        assert (message, handles) == (b"{}", [])


@pytest.mark.parametrize("offered", ["a file", "a dead child", "nothing"])
def test_what_is_no_child_is_let_go_and_one_asked_for(offered: str) -> None:
    ours, theirs = forks.channel()
    with ours, theirs:
        end, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end, open(os.devnull) as file:  # noqa: PTH123
            child.send(b"hello")
            child.close()
            handles = {"a file": [file.fileno()], "a dead child": [end.fileno()], "nothing": []}
            socket.send_fds(theirs, [b"{}"], handles[offered])
        before = _open()
        with forks.ask(ours, SPEC).link:
            assert _open() == before + 1
        told = 0
        while True:
            _, asked, _, _ = socket.recv_fds(theirs, 9, 1)
            if asked:
                os.close(asked[0])
                break
            told += 1
        assert told == (offered != "nothing"), "what is let go is told, so that the next is forked"
