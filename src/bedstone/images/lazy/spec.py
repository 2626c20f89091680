"""What a blob server is told: a directory of files, written by who mounts.

```text
DIRECTORY/spec.json      sources, cache, patience, prefetch
DIRECTORY/table          where chunks are
DIRECTORY/spans-HEX      points of a gzip layer
DIRECTORY/blobs/device   the FUSE mount with the device
```
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bedstone.errors import ConflictError, InvalidError, UnavailableError
from bedstone.images.endpoints import Endpoints
from bedstone.images.lazy.cache import LIMIT, ChunkCache, limit
from bedstone.images.lazy.chunks import Chunks, Rejected
from bedstone.images.lazy.making import Lazy
from bedstone.images.lazy.sealing import Seal
from bedstone.images.lazy.sources import (
    FirstOf,
    LocalSource,
    Puller,
    RegistrySource,
    Source,
    Whole,
)
from bedstone.images.lazy.spans import Spans
from bedstone.images.lazy.table import Table
from bedstone.images.models import Descriptor
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.requests import Patience
from bedstone.images.store import ContentStore

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Origin:
    """One place that blobs come from: of the two, one.

    Attributes:
        directory: of blobs by `sha256/HEX` on this machine.
        image: a name in the repository of a registry, to be asked by ranges. Credentials and
            mirrors are those of the user.
        store: with an image: the content store that blobs are pulled into whole, where ranges
            cannot be had. It comes last.
    """

    directory: str = ""
    image: str = ""
    store: str = ""

    def open(self, table: Table) -> list[Source]:
        """The sources, the best first."""
        if not self.image:
            if not self.directory:
                raise InvalidError("an origin of blobs has neither a directory nor an image")
            root = Path(self.directory)
            return [LocalSource(lambda digest: root.joinpath(*digest.split(":", 1)))]
        reference = Reference.parse(self.image)
        # The reader is patient; a client that is too would keep it from other sources.
        client = RegistryClient(patience=Patience(attempts=1))
        sources = [RegistrySource(client, reference)]
        if len(client.endpoints.of(reference)) > 1:
            # What mirrors give wrong is nothing that a client sees: asked for by itself, the
            # registry can still have it right.
            alone = RegistryClient(Endpoints(), patience=Patience(attempts=1))
            sources.append(RegistrySource(alone, reference))
        if not self.store:
            return [*sources]
        pull = pulling(ContentStore(Path(self.store)), client, reference, table)
        return [*sources, Whole(pull, at_once=lambda: not sources[0].ranges)]


def pulling(
    store: ContentStore, client: RegistryClient, reference: Reference, table: Table
) -> Puller:
    """Pulls whole blobs of an image into a store."""
    sizes = {blob.digest: blob.size for blob in table.blobs}

    async def pull(digest: str) -> Path:
        if not store.has(digest):
            descriptor = Descriptor(media_type="", digest=digest, size=sizes[digest])
            try:
                with await asyncio.to_thread(store.writer, digest, sizes[digest]) as writer:
                    await client.blob(reference, descriptor, writer)
            except ConflictError as error:  # another process pulls it
                raise UnavailableError(error.message) from error
        return store.path(digest)

    return pull


@dataclass(frozen=True, slots=True)
class Spec:
    """What to serve.

    Attributes:
        directory: where this and the table are.
        cache: the directory of chunks.
        origins: at least one.
        patience: seconds for which failing sources are asked again.
        prefetch: numbers of chunks to read ahead.
        cache_limit: bytes that the cache may have, which all images of a machine share.
        seal: of an encrypted image. The key itself is not written: the server has it unwrapped.
    """

    directory: Path
    cache: Path
    origins: Sequence[Origin]
    patience: float = 30.0
    prefetch: Sequence[int] = ()
    cache_limit: int = field(default_factory=limit)
    seal: Seal | None = None

    def write(self, image: Lazy) -> None:
        """Write everything that a server reads."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "table").write_bytes(image.table.encode())
        for digest, spans in image.spans.items():
            self._spans(digest).write_bytes(spans.encode())
        text = json.dumps(
            {
                "cache": str(self.cache),
                "origins": [asdict(origin) for origin in self.origins],
                "patience": self.patience,
                "prefetch": list(self.prefetch),
                "cache_limit": self.cache_limit,
                "seal": [self.seal.encode(), self.seal.subject] if self.seal else None,
            }
        )
        (self.directory / "spec.json").write_text(text)

    @classmethod
    def load(cls, directory: Path) -> Spec:
        """Read what `write` wrote."""
        found = json.loads((directory / "spec.json").read_text())
        origins = [Origin(**origin) for origin in found["origins"]]
        cache, patience, prefetch = Path(found["cache"]), found["patience"], found["prefetch"]
        seal = Seal.decode(*found["seal"]) if found.get("seal") else None
        most = found.get("cache_limit", LIMIT)
        return cls(directory, cache, origins, patience, prefetch, most, seal)

    def chunks(self, tell: Callable[[Rejected], None]) -> Chunks:
        """The device's content."""
        table = Table.decode((self.directory / "table").read_bytes())
        spans = {
            blob.digest: Spans.decode(self._spans(blob.digest).read_bytes())
            for blob in table.blobs
            if blob.kind == "gzip"
        }
        sources = [source for origin in self.origins for source in origin.open(table)]
        others = [source for source in sources if not isinstance(source, Whole)]
        cache = ChunkCache(self.cache)
        cipher = self.seal.open() if self.seal else None
        return Chunks(table, spans, FirstOf(sources), cache, tell, self.patience, others, cipher)

    def _spans(self, digest: str) -> Path:
        return self.directory / f"spans-{digest.removeprefix('sha256:')}"
