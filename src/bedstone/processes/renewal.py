"""What a forked interpreter must not share with its siblings, and how it gets its own.

A fork copies every generator of random numbers with its state, every key that was drawn, and what
was remembered of pid, clock and folders. `sources` finds the generators before the fork, once,
while the collector still knows them; `renew` gives the child its own. What cannot be found by type
is the business of `preloading`, which refuses modules that draw random bytes while imported.

OpenSSL draws a new seed by itself once it sees another pid (RAND(7), "fork safety").

Shared on purpose: the seed of `hash()` and the layout of addresses, which a fork cannot change.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What keeps numeric libraries from starting threads when they are loaded."""
_SETTERS = {
    "openblas": (
        "OPENBLAS_NUM_THREADS",
        (
            "openblas_set_num_threads",
            "openblas_set_num_threads64_",
            "scipy_openblas_set_num_threads",
            "scipy_openblas_set_num_threads64_",
        ),
    ),
    "libgomp": ("OMP_NUM_THREADS", ("omp_set_num_threads",)),
    "libiomp": ("OMP_NUM_THREADS", ("omp_set_num_threads",)),
    "libmkl_rt": ("MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
}
_libc = ctypes.CDLL(None)
_GENERATORS = ("BitGenerator", "SeedSequence")


@dataclass(frozen=True, slots=True)
class Sources:
    """What `renew` needs, found before the fork.

    Attributes:
        generators: objects with a state of random numbers, and how each is renewed.
        pools: of loaded numeric libraries, the variable and the function for their threads.
        coerced: the variables that the interpreter has set for itself (PEP 538).
    """

    generators: tuple[Callable[[], object], ...]
    pools: tuple[tuple[str, Callable[[int], object]], ...]
    coerced: Mapping[str, str]


def sources() -> Sources:
    """Look through the heap and the loaded libraries. Takes some milliseconds."""
    numpy = sys.modules.get("numpy.random")
    kinds = tuple(getattr(numpy, name) for name in _GENERATORS) if numpy else ()
    states = (numpy.RandomState,) if numpy else ()
    found: list[Callable[[], object]] = []
    after: list[Callable[[], object]] = []
    for item in gc.get_objects():
        kind = type(item)
        if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
            found.append(item.seed)
        elif kinds and issubclass(kind, kinds):
            found.append(item.__init__)  # draws a new seed, as its construction did
        elif states and issubclass(kind, states):
            after.append(partial(item.__init__, item._bit_generator))  # noqa: SLF001
    given = Path("/proc/self/environ").read_bytes()
    kept = os.environ.get("LC_CTYPE")
    coerced = {"LC_CTYPE": kept} if kept and b"LC_CTYPE=" not in given else {}
    return Sources((*found, *after), tuple(_pools()), coerced)


def _pools() -> Iterator[tuple[str, Callable[[int], object]]]:
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for path in sorted(path for path in paths if path.startswith("/")):
        for word, (variable, names) in _SETTERS.items():
            if word not in Path(path).name:
                continue
            library = ctypes.CDLL(path)
            for name in names:
                with contextlib.suppress(AttributeError):
                    yield variable, getattr(library, name)
                    break


def renew(found: Sources, env: Mapping[str, str]) -> None:
    """Give this process its own streams, ids, clock and environment. Called once, after a fork."""
    env = {**found.coerced, **env}
    for name in [name for name in os.environ if name not in env]:
        del os.environ[name]
    os.environ.update(env)
    time.tzset()
    for generator in found.generators:
        generator()
    _libc.srandom(int.from_bytes(os.urandom(4), "little"))
    _libc.srand48(ctypes.c_long(int.from_bytes(os.urandom(4), "little")))
    for name, action in _MODULES.items():
        module = sys.modules.get(name)
        if module is not None:
            action(module)
    for variable, set_threads in found.pools:
        number = env.get(variable) or env.get("OMP_NUM_THREADS") or ""
        threads = int(number) if number.isdecimal() else len(os.sched_getaffinity(0))
        if threads > 1:
            set_threads(threads)


def _uuid(module: Any) -> None:
    # The C library keeps its clock sequence to itself; Python's own code draws one each time.
    module._generate_time_safe = None  # noqa: SLF001
    module._last_timestamp = None  # noqa: SLF001
    module._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)  # noqa: SLF001  # RFC 9562 §6.10


def _multiprocessing(module: Any) -> None:
    module.current_process().authkey = os.urandom(32)


def _tempfile(module: Any) -> None:
    module.tempdir = None
    module._name_sequence = None  # noqa: SLF001


def _logging(module: Any) -> None:
    whole = isinstance(module._startTime, int)  # noqa: SLF001  # nanoseconds since Python 3.13
    module._startTime = time.time_ns() if whole else time.time()  # noqa: SLF001


_MODULES: Mapping[str, Callable[[Any], None]] = {
    "uuid": _uuid,
    "multiprocessing.process": _multiprocessing,
    "tempfile": _tempfile,
    "logging": _logging,
}
