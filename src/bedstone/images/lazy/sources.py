"""Where the bytes of blobs come from: a store on this machine, registries, mirrors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient


class Source(Protocol):
    """Reads pieces of blobs. Nothing that it gives is trusted: the reader verifies."""

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """Bytes of a blob, exactly `length` of them.

        May be called concurrently, and again after any error.

        Raises:
            UnavailableError: not now.
            NotFoundError: there is no such blob here.
        """
        ...


class LocalSource:
    """Blobs that are whole files on this machine.

    Args:
        path: where a digest's file is, or would be.
    """

    def __init__(self, path: Callable[[str], Path]) -> None:
        self._path = path

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """As `Source.read`; a blob that is not there is an UnavailableError, for it may come."""
        return await asyncio.to_thread(self._read, digest, start, length)

    def _read(self, digest: str, start: int, length: int) -> bytes:
        try:
            with self._path(digest).open("rb") as file:
                data = os.pread(file.fileno(), length, start)
        except OSError as error:
            raise UnavailableError(f"blob {digest} is not here: {error.strerror}") from error
        if len(data) != length:
            raise UnavailableError(f"blob {digest} ends before byte {start + length}")
        return data


class RegistrySource:
    """The blobs of a repository, by ranges, from its mirrors and its registry.

    Args:
        client: to ask with; it should not be patient, for the reader is.
        reference: any name in the repository.

    Attributes:
        ranges: whether ranges were given, as far as is known.
    """

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self._client = client
        self._reference = reference
        self.ranges = True

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """As `Source.read`."""
        try:
            data = await self._client.piece(self._reference, digest, start, length)
        except InvalidError:
            self.ranges = False
            raise
        self.ranges = True
        return data


class FirstOf:
    """Sources in the order of preference: one that fails is asked last for a while.

    Args:
        sources: at least one.
        timeout: seconds that one may take to answer.
        rest: seconds for which a source that failed comes last.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        timeout: float = 20.0,
        rest: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not sources:
            raise InvalidError("no source of blobs was given")
        self._sources = list(sources)
        self._timeout, self._rest = timeout, rest
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._until = [float("-inf")] * len(self._sources)

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """As `Source.read`, from the first that answers."""
        now = self._clock()
        order = sorted(range(len(self._sources)), key=lambda it: (self._until[it] > now, it))
        failures: list[str] = []
        for number in order:
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._sources[number].read(digest, start, length)
            except (Error, OSError, TimeoutError) as error:
                self._until[number] = self._clock() + self._rest
                failures.append(str(error) or "no answer in time")
        raise UnavailableError(f"no source has blob {digest}: {'; '.join(failures)}")


class Whole:
    """The last resort where ranges cannot be had: pulls a blob whole, once, and reads it here.

    It is asked when all others have failed, and whole blobs are much: it waits until that has gone
    on for a while, unless it is known that ranges are never given. A pull goes on when the reader
    that began it has gone.

    Args:
        pull: makes the whole blob present, verified, and says where its file is.
        after: seconds for which others must have failed, asked at least every `rest` seconds.
        rest: seconds.
        at_once: whether ranges are not to be had at all.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pull: Puller,
        *,
        after: float = 10.0,
        rest: float = 5.0,
        at_once: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._pull = pull
        self._after, self._rest = after, rest
        self._at_once = at_once
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._first = self._last = float("-inf")
        self._coming: dict[str, asyncio.Future[Path]] = {}

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """As `Source.read`."""
        coming = self._coming.get(digest)
        if coming is None or (coming.done() and coming.exception() is not None):
            self._demand()
            coming = self._coming[digest] = asyncio.ensure_future(self._pull(digest))
        path = await asyncio.shield(coming)
        return await LocalSource(lambda _: path).read(digest, start, length)

    def _demand(self) -> None:
        now = self._clock()
        if now - self._last > self._rest:
            self._first = now
        self._last = now
        if now - self._first < self._after and not self._at_once():
            raise UnavailableError("ranges may yet be had")


class Puller(Protocol):
    """Makes blobs present."""

    async def __call__(self, digest: str) -> Path:
        """The file of a blob, pulled if it is not there. Raises UnavailableError."""
        ...
