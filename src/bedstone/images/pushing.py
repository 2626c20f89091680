"""Pushing an image of the store to a registry: content first, then what names it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from bedstone.errors import NotFoundError
from bedstone.images.collection import closure
from bedstone.images.models import DOCUMENT_BYTES, Descriptor, Index, parse_manifest
from bedstone.images.opening import resolve
from bedstone.images.reference import Reference
from bedstone.images.referrers import announce, artifacts
from bedstone.images.registry import Document, RegistryClient
from bedstone.images.store import ContentStore

_BLOCK = 1 << 18
_LEASE_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Sent:
    """Content is at the registry.

    Args:
        descriptor: which.
        how: `sent`, `there` (it was already) or `mounted` (taken over from another repository).
    """

    descriptor: Descriptor
    how: str


@dataclass(frozen=True, slots=True)
class Sending:
    """So many bytes of some content were sent."""

    descriptor: Descriptor
    done: int


async def push(
    store: ContentStore,
    client: RegistryClient,
    source: Reference,
    target: Reference | None = None,
    *,
    parallel: int = 4,
    tell: Callable[[Sent | Sending], None] = lambda _: None,
) -> Descriptor:
    """Send an image with all its platforms, and the lazy images made of it.

    Args:
        store: where it is.
        client: where it goes.
        source: its name here.
        target: its name there; the same by default.
        parallel: how many uploads at once.
        tell: is told what happens; must not block.

    Returns: its descriptor at the registry, as it is here.

    Raises:
        NotFoundError: it is not here, or not all of its platforms are.
        DeniedError: the registry refuses.
        UnavailableError: it fails; to push again sends only what is missing.
    """
    target = target or source
    root = resolve(store, source)
    with await asyncio.to_thread(
        store.lease, f"push-{secrets.token_hex(8)}", seconds=_LEASE_SECONDS
    ) as lease:
        await asyncio.to_thread(lease.add, root.digest)
        documents, content = await asyncio.to_thread(_plan, store, root, source)
        beside = [
            one
            for document in documents
            for one in await asyncio.to_thread(artifacts, store, document.descriptor.digest)
        ]
        for one in beside:
            about = parse_manifest(one.data, one.descriptor.media_type, "an artifact")
            content += [it for it in about.children() if it not in content]
        mounts = await asyncio.to_thread(_mounts, store, target)
        slots = asyncio.Semaphore(parallel)

        async def send(descriptor: Descriptor) -> None:
            async with slots:
                how = await _send(store, client, target, descriptor, mounts, tell)
                tell(Sent(descriptor, how))

        async with asyncio.TaskGroup() as group:
            for descriptor in content:
                group.create_task(send(descriptor))
        for document in documents[:-1]:
            await client.put_document(target.at(document.descriptor.digest), document)
        await client.put_document(target, documents[-1])
        for one in beside:
            await announce(client, target, one)
    return root


def _plan(
    store: ContentStore, root: Descriptor, source: Reference
) -> tuple[list[Document], list[Descriptor]]:
    """Documents, those that name others last, and the content that they need."""
    documents: dict[str, Document] = {}
    content: dict[str, Descriptor] = {}

    def visit(descriptor: Descriptor) -> None:
        if descriptor.digest in documents:
            return
        try:
            data = store.read(descriptor.digest, DOCUMENT_BYTES)
        except NotFoundError:
            raise NotFoundError(
                f"{source.familiar} is not here for {descriptor.platform or 'all platforms'}",
                hint=f"`bedstone image pull {source.familiar} --all-platforms` fetches the rest",
            ) from None
        document = parse_manifest(data, descriptor.media_type, source.familiar)
        for child in document.children():
            if isinstance(document, Index):
                visit(child)
            else:
                store.size(child.digest)
                content[child.digest] = child
        documents[descriptor.digest] = Document(data, descriptor)

    visit(root)
    return list(documents.values()), list(content.values())


def _mounts(store: ContentStore, target: Reference) -> dict[str, str]:
    """Where content probably is at the same registry: digest to repository."""
    found: dict[str, str] = {}
    for named in store.names():
        other = named.reference
        if other.registry == target.registry and other.repository != target.repository:
            for digest in closure(store, [named.descriptor.digest]):
                found.setdefault(digest, other.repository)
    return found


async def _send(
    store: ContentStore,
    client: RegistryClient,
    target: Reference,
    descriptor: Descriptor,
    mounts: dict[str, str],
    tell: Callable[[Sent | Sending], None],
) -> str:
    digest = descriptor.digest
    if await client.has_blob(target, digest):
        return "there"
    source = mounts.get(digest)
    if source is not None and await client.mount(target, digest, source):
        return "mounted"

    async def read() -> AsyncIterator[bytes]:
        done = 0
        with store.open(digest) as file:
            while block := await asyncio.to_thread(file.read, _BLOCK):
                yield block
                done += len(block)
                tell(Sending(descriptor, done))

    await client.upload(target, descriptor, read)
    return "sent"
