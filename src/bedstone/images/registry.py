"""A client of registries (OCI distribution-spec 1.1).

Rules:
- Nothing is believed: content is compared with its digest wherever one is known, and no answer is
  read beyond its limit.
- Content that was cut goes on by Range; a registry that does not know ranges sends it all again.
- Mirrors are asked first. Where one fails or lies, the next goes on.
- Errors are those of `bedstone.images.requests`, and `VerificationError` for wrong content.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import httpx

from bedstone.errors import Error, InvalidError, NotFoundError, UnavailableError, VerificationError
from bedstone.images import digests
from bedstone.images.credentials import DockerKeyring, Keyring
from bedstone.images.endpoints import Endpoint, Endpoints, from_environment
from bedstone.images.ingest import Writer
from bedstone.images.models import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCUMENT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse,
)
from bedstone.images.reference import Reference
from bedstone.images.requests import Patience, Requests, as_error, momentary, require

Answer = TypeVar("Answer")
Advance = Callable[[int], None]
"""Called with how many bytes of a blob are there."""

_ACCEPT = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"}
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)\Z")
_LIES = "the registry or what is between serves other content; use none of it"
_ANSWER_BYTES = 64 << 10
_TAGS = 10_000


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index: its bytes, and the descriptor that names them."""

    data: bytes
    descriptor: Descriptor


class RegistryClient:
    """Speaks to registries; an async context manager. Safe for many tasks at once.

    Args:
        endpoints: where registries are; by default as the environment says.
        keyring: credentials; by default docker's.
        patience: how often to try.
        http: a client to use instead of one of its own.
    """

    def __init__(
        self,
        endpoints: Endpoints | None = None,
        keyring: Keyring | None = None,
        patience: Patience | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.endpoints = endpoints if endpoints is not None else from_environment()
        self._requests = Requests(keyring or DockerKeyring(), patience or Patience(), http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._requests.http.aclose()

    # Pulling

    async def document(self, reference: Reference) -> Document:
        """The manifest or index that a reference means."""

        async def attempt(endpoint: Endpoint) -> Document:
            path = f"/v2/{reference.repository}/manifests/{reference.target}"
            response, data = await self._requests.small(
                endpoint, "GET", path, _pull(reference), limit=DOCUMENT_BYTES, headers=_ACCEPT
            )
            digest = reference.digest or digests.of(data)
            if not digests.matches(digest, data):
                raise _lied(endpoint, digest, digests.of(data))
            media_type = response.headers.get("content-type", "").split(";")[0].strip()
            return Document(data, Descriptor(media_type=media_type, digest=digest, size=len(data)))

        return await self._anywhere(reference, attempt)

    async def small_blob(self, reference: Reference, descriptor: Descriptor, limit: int) -> bytes:
        """A blob of at most `limit` bytes, verified."""
        if descriptor.size > limit:
            raise InvalidError(
                f"{descriptor.digest} has {descriptor.size} bytes, more than {limit}"
            )

        async def attempt(endpoint: Endpoint) -> bytes:
            path = _blob_path(reference, descriptor.digest)
            _, data = await self._requests.small(
                endpoint, "GET", path, _pull(reference), limit=limit
            )
            if not digests.matches(descriptor.digest, data):
                raise _lied(endpoint, descriptor.digest, digests.of(data))
            return data

        return await self._anywhere(reference, attempt)

    async def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        writer: Writer,
        advance: Advance = lambda _: None,
    ) -> None:
        """Download a blob into a writer, from where that stands, and commit it."""

        async def attempt(endpoint: Endpoint) -> None:
            # From an earlier download, or another server: any of that may be wrong.
            resumed = writer.offset > 0
            while True:
                await self._content(endpoint, reference, descriptor, writer, advance)
                try:
                    await asyncio.to_thread(writer.commit)
                except VerificationError as error:
                    if not resumed:
                        said = f"{endpoint.url}: {error.message}"
                        raise VerificationError(said, hint=_LIES) from error
                    resumed = False  # once more, all of it
                else:
                    return

        # Downloads have patience of their own, which counts anew with each progress.
        await self._anywhere(reference, attempt, patient=False)

    async def piece(self, reference: Reference, digest: str, start: int, length: int) -> bytes:
        """Bytes of a blob, from `start`; whoever asks verifies them, for here nothing can be."""

        async def attempt(endpoint: Endpoint) -> bytes:
            path = _blob_path(reference, digest)
            headers = {"Range": f"bytes={start}-{start + length - 1}"}
            async with self._requests.stream(
                endpoint, "GET", path, _pull(reference), headers=headers
            ) as response:
                if not _goes_on(response, start):
                    raise InvalidError(f"{endpoint.url} gives no ranges of blobs")
                data = bytearray()
                async for block in response.aiter_raw():
                    data += block
                    if len(data) >= length:  # of a server that gives more than was asked for
                        break
            if len(data) < length:
                raise UnavailableError(f"{endpoint.url} ends a range of {digest} early")
            return bytes(data[:length])

        return await self._anywhere(reference, attempt)

    async def _content(
        self,
        endpoint: Endpoint,
        reference: Reference,
        descriptor: Descriptor,
        writer: Writer,
        advance: Advance,
    ) -> None:
        """Read on until all is there; a connection that was cut is followed by another."""
        path = _blob_path(reference, descriptor.digest)
        failures = 0
        while writer.offset < descriptor.size:
            start = writer.offset
            headers = {"Range": f"bytes={start}-"} if start else {}
            try:
                async with self._requests.stream(
                    endpoint, "GET", path, _pull(reference), headers=headers
                ) as response:
                    if not _goes_on(response, start):
                        writer.restart()
                    if response.status_code == 416:
                        raise UnavailableError(f"{endpoint.url} knows no range from {start}")
                    async for block in response.aiter_raw():
                        writer.write(block)
                        advance(writer.offset)
                if writer.offset < descriptor.size:
                    raise UnavailableError(
                        f"{endpoint.url} ends {descriptor.digest} after {writer.offset} "
                        f"of {descriptor.size} bytes"
                    )
            except (UnavailableError, httpx.HTTPError) as error:
                failures = 1 if writer.offset > start else failures + 1
                told = as_error(error)
                if failures >= self._requests.patience.attempts or not momentary(error):
                    raise told from error
                await asyncio.sleep(self._requests.patience.wait(failures, told.retry_after))

    async def tags(self, reference: Reference) -> list[str]:
        """The tags of a repository, the first 10,000 in the registry's order."""
        endpoint = self.endpoints.origin(reference)
        path = f"/v2/{reference.repository}/tags/list"

        async def attempt() -> list[str]:
            _, data = await self._requests.small(
                endpoint, "GET", path, _pull(reference), limit=DOCUMENT_BYTES
            )
            try:
                import json

                return [str(tag) for tag in json.loads(data)["tags"] or []][:_TAGS]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidError(f"{endpoint.url} answers no list of tags") from error

        return await self._requests.patiently(attempt)

    async def referrers(self, reference: Reference, digest: str) -> list[Descriptor]:
        """The artifacts about an image: by the registry's list of them, else by the tag for it."""
        endpoint = self.endpoints.origin(reference)
        path = f"/v2/{reference.repository}/referrers/{digests.check(digest)}"

        async def attempt() -> bytes:
            _, data = await self._requests.small(
                endpoint, "GET", path, _pull(reference), limit=DOCUMENT_BYTES
            )
            return data

        try:
            data = await self._requests.patiently(attempt)
        except NotFoundError:
            try:
                place = reference.tagged("-".join(digests.parts(digest)))
                data = (await self.document(place)).data
            except NotFoundError:
                return []
        return list(parse(Index, data, f"referrers of {digest}").manifests)

    # Pushing

    async def has_blob(self, reference: Reference, digest: str) -> bool:
        """Whether a repository has a blob already."""
        endpoint = self.endpoints.origin(reference)
        path = _blob_path(reference, digests.check(digest))

        async def attempt() -> bool:
            try:
                await self._requests.small(endpoint, "HEAD", path, _push(reference), limit=0)
            except NotFoundError:
                return False
            return True

        return await self._requests.patiently(attempt)

    async def mount(self, reference: Reference, digest: str, source: str) -> bool:
        """Take a blob over from another repository of the registry; whether that worked.

        A registry that does not begins an upload instead, which is left to run out.
        """
        endpoint = self.endpoints.origin(reference)
        try:
            response, _ = await self._requests.small(
                endpoint,
                "POST",
                f"/v2/{reference.repository}/blobs/uploads/",
                f"{_push(reference)} repository:{source}:pull",
                limit=_ANSWER_BYTES,
                params={"mount": digests.check(digest), "from": source},
            )
        except (Error, httpx.HTTPError):
            return False  # to send it is always possible, and says what is wrong
        return response.status_code == 201

    async def upload(
        self, reference: Reference, descriptor: Descriptor, read: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        """Send a blob.

        Args:
            reference: the repository.
            descriptor: what is sent.
            read: gives the content from its start; called once for each attempt.
        """
        endpoint = self.endpoints.origin(reference)
        scope = _push(reference)

        async def attempt() -> None:
            begun, _ = await self._requests.small(
                endpoint,
                "POST",
                f"/v2/{reference.repository}/blobs/uploads/",
                scope,
                limit=_ANSWER_BYTES,
            )
            here = begun.request.url
            place = here.join(begun.headers.get("location", ""))
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(descriptor.size),
            }
            if (place.scheme, place.host, place.port) == (here.scheme, here.host, here.port):
                headers |= self._requests.authorization(endpoint, scope)
            # The place may have a query of its own, which must stay.
            target = place.copy_merge_params({"digest": descriptor.digest})
            async with self._requests.http.stream(
                "PUT", target, content=read(), headers=headers
            ) as done:
                await require(done, endpoint)

        await self._requests.patiently(attempt)

    async def put_document(self, reference: Reference, document: Document) -> bool:
        """Send a manifest or index, under the reference's tag, or else under its digest.

        Returns: whether the registry has put it on the list of its subject (distribution-spec,
        "Pushing Manifests with Subject").
        """
        endpoint = self.endpoints.origin(reference)
        target = reference.tag or document.descriptor.digest

        async def attempt() -> bool:
            response, _ = await self._requests.small(
                endpoint,
                "PUT",
                f"/v2/{reference.repository}/manifests/{target}",
                _push(reference),
                limit=_ANSWER_BYTES,
                content=document.data,
                headers={"Content-Type": document.descriptor.media_type},
            )
            return "oci-subject" in response.headers

        return await self._requests.patiently(attempt)

    async def _anywhere(
        self,
        reference: Reference,
        attempt: Callable[[Endpoint], Awaitable[Answer]],
        *,
        patient: bool = True,
    ) -> Answer:
        """Try mirrors, then the registry; its error counts, for mirrors need not have anything."""

        async def at(endpoint: Endpoint) -> Answer:
            if patient:
                return await self._requests.patiently(lambda: attempt(endpoint))
            return await attempt(endpoint)

        *mirrors, origin = self.endpoints.of(reference)
        for mirror in mirrors:
            try:
                return await at(mirror)
            except Error:
                continue
        return await at(origin)


def _goes_on(response: httpx.Response, start: int) -> bool:
    """Whether an answer continues at `start`, rather than begin anew."""
    if start == 0:
        return True
    match = _RANGE.match(response.headers.get("content-range", ""))
    if response.status_code == 206 and match is not None and int(match[1]) == start:
        return True
    if response.status_code in (200, 416):
        return False
    raise InvalidError(f"got status {response.status_code} for a range from {start}")


def _blob_path(reference: Reference, digest: str) -> str:
    return f"/v2/{reference.repository}/blobs/{digest}"


def _pull(reference: Reference) -> str:
    return f"repository:{reference.repository}:pull"


def _push(reference: Reference) -> str:
    return f"repository:{reference.repository}:pull,push"


def _lied(endpoint: Endpoint, wanted: str, found: str) -> VerificationError:
    return VerificationError(
        f"{endpoint.url} sends content {found}, expected {wanted}",
        hint=_LIES,
    )
