"""A fork whose child belongs to the parent's parent, by one call and by two."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bedstone.processes import siblings

TEXT = """
import ctypes, json, os, signal, ssl, sys, threading
from bedstone.processes import linux, serving, siblings
if sys.argv[1] == "twice":
    siblings.available = lambda: False
linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
top, (read, write) = os.getpid(), os.pipe()
ssl.RAND_bytes(8)
middle = os.fork()
if middle == 0:
    for _ in range(3):
        if serving._fork():
            said = [os.getppid() == top, threading.get_native_id() == os.getpid(),
                    threading.main_thread() is threading.current_thread(), ssl.RAND_bytes(8).hex()]
            thread = threading.Thread(target=said.append, args=["ran"])
            thread.start(); thread.join()
            os.write(write, json.dumps(said).encode() + b"\\n")
            os.abort()  # the C library signals the thread by the number that it remembers
    os._exit(0)
os.close(write)
os.waitpid(middle, 0)
ends = [os.wait()[1] for _ in range(3)]
print(json.dumps([ends, open(read).read().splitlines()]))
"""


@pytest.mark.parametrize("how", ["once", "twice"])
def test_a_child_belongs_to_the_parents_parent(how: str) -> None:
    if how == "once" and not siblings.available():
        pytest.skip("this machine's system calls are not known, or the kernel tells no addresses")
    done = subprocess.run(
        [sys.executable, "-c", TEXT, how], check=True, capture_output=True, text=True
    )
    ends, lines = json.loads(done.stdout)
    assert ends == [6, 6, 6], "each ended by SIGABRT, and was waited for by the parent's parent"
    said = [json.loads(line) for line in lines]
    assert [line[:3] + line[4:] for line in said] == [[True, True, True, "ran"]] * 3
    assert len({line[3] for line in said}) == 3, "OpenSSL draws another seed in each"
