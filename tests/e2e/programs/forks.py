"""`forks.py CHILDREN [libraries]`: forks this interpreter as a zygote does; what is distinct?

Prints a JSON object: kind of value to the number of distinct ones.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import secrets
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import process

from bedstone.processes import renewal

BATCH = 50
STREAM = random.Random(7)
LIBC = ctypes.CDLL(None)
KINDS: dict[str, Callable[[], object]] = {
    "random": random.random,
    "a module's stream": STREAM.random,
    "secrets": lambda: secrets.token_hex(8),
    "uuid1": lambda: str(uuid.uuid1()),
    "uuid4": lambda: str(uuid.uuid4()),
    "authkey": lambda: bytes(process.current_process().authkey).hex(),
    # 31 bits each would repeat by chance.
    "libc": lambda: [LIBC.random() for _ in range(3)],
}


def library_kinds() -> dict[str, Callable[[], object]]:
    """Those of OpenSSL and numpy; generators that a module has made are among them."""
    import ssl

    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    numpy = importlib.import_module("numpy.random")
    generator, legacy, seeds = (
        numpy.default_rng(7),
        numpy.RandomState(7),
        numpy.SeedSequence(7),
    )
    return {
        "ssl": lambda: ssl.RAND_bytes(8).hex(),
        "numpy": numpy.random,
        "default_rng": lambda: numpy.default_rng().random(),
        "a module's generator": generator.random,
        "what it spawns": lambda: [child.random() for child in generator.spawn(1)],
        "a module's RandomState": legacy.standard_normal,
        "a module's seeds": lambda: numpy.default_rng(seeds).random(),
    }


def main() -> None:
    """Fork them all, some at a time."""
    kinds = KINDS | (library_kinds() if sys.argv[2:] else {})
    for draw in kinds.values():
        draw()  # so that there is a state to be shared
    found = renewal.sources()
    env = {"PATH": os.defpath}
    gc.freeze()
    values: defaultdict[str, set[str]] = defaultdict(set)
    read, write = os.pipe()
    with os.fdopen(read) as answers:
        for _ in range(int(sys.argv[1]) // BATCH):
            for _ in range(BATCH):
                if os.fork() == 0:
                    renewal.renew(found, env)
                    answer = [draw() for draw in kinds.values()]
                    os.write(write, json.dumps(answer).encode() + b"\n")
                    os._exit(0)
            for _ in range(BATCH):
                for kind, value in zip(kinds, json.loads(answers.readline()), strict=True):
                    values[kind].add(json.dumps(value))
                os.wait()
    json.dump({kind: len(drawn) for kind, drawn in values.items()}, sys.stdout)


main()
