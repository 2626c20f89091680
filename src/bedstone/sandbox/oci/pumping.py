"""Pipes in the place of regular files, for a runtime that reads and writes those from their start.

gVisor's kernel keeps a position of its own in a file that it is given, beginning at 0: what the
caller wrote before is overwritten, and so is what the program wrote. A pipe has no position; what
goes through it is read and written here, by the caller's descriptor.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from typing import Final

_BLOCK: Final = 64 * 1024


class Pumps:
    """What a program gets for its caller's three descriptors: pipes for those that are files.

    Args:
        given: the caller's, of input, output and errors; duplicated, never closed.

    Attributes:
        descriptors: what the program is to get.
    """

    def __init__(self, given: tuple[int, int, int]) -> None:
        self.descriptors = list(given)
        self._ends: list[int] = []
        self._asks: list[int] = []
        self._done: list[threading.Event] = []
        self._draining = threading.Lock()
        found = [os.fstat(descriptor) for descriptor in given]
        files = [stat.S_ISREG(each.st_mode) for each in found]
        if files[0]:
            reading, writing = os.pipe()
            self._pump(os.dup(given[0]), writing)
            self._give(0, reading)
        for number in (1, 2):
            if not files[number]:
                continue
            if number == 2 and files[1] and os.path.samestat(found[1], found[2]):
                self.descriptors[2] = self.descriptors[1]  # by one pipe they stay in order
                continue
            reading, writing = os.pipe()
            asked, ask = os.pipe()
            self._asks.append(ask)
            self._done.append(self._pump(reading, os.dup(given[number]), asked))
            self._give(number, writing)

    def given(self) -> None:
        """The program has its ends, or never will."""
        while self._ends:
            os.close(self._ends.pop())

    def drain(self) -> None:
        """Wait until what was written is in its file. What is written later gets there, too."""
        with self._draining:
            while self._asks:
                os.close(self._asks.pop())
        for done in self._done:
            done.wait()

    def _give(self, number: int, end: int) -> None:
        self.descriptors[number] = end
        self._ends.append(end)

    def _pump(self, source: int, target: int, asked: int | None = None) -> threading.Event:
        done = threading.Event()
        threading.Thread(target=_move, args=(source, target, asked, done), daemon=True).start()
        return done


def _move(source: int, target: int, asked: int | None, done: threading.Event) -> None:
    """Move bytes until there are no more, or nobody takes them.

    Args:
        source: what is read; closed at the end, as are the others.
        target: what is written.
        asked: a pipe, whose end is seen when everything that is in the source is to be moved.
        done: it is.
    """
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if asked is not None:
        poll.register(asked, select.POLLIN)
    try:
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if asked is not None and source not in ready:
                poll.unregister(asked)
                done.set()
                continue
            data = memoryview(os.read(source, _BLOCK))
            if not data:
                return
            while data:
                data = data[os.write(target, data) :]
    except OSError:
        return  # the program has ended, or the disk is full, which its next write finds out
    finally:
        for descriptor in (source, target, asked):
            if descriptor is not None:
                os.close(descriptor)
        done.set()
