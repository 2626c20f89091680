"""What a blob server is told: a directory of files, written by who mounts.

```text
DIRECTORY/spec.json      sources, cache, patience, prefetch
DIRECTORY/table          where chunks are
DIRECTORY/spans-HEX      points of a gzip layer
DIRECTORY/blobs/device   the FUSE mount with the device
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bedstone.errors import InvalidError
from bedstone.images.lazy.cache import ChunkCache
from bedstone.images.lazy.chunks import Chunks, Rejected
from bedstone.images.lazy.making import Lazy
from bedstone.images.lazy.sealing import Seal
from bedstone.images.lazy.sources import FirstOf, LocalSource, RegistrySource, Source
from bedstone.images.lazy.spans import Spans
from bedstone.images.lazy.table import Table
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.requests import Patience

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Origin:
    """One place that blobs come from: of the two, one.

    Attributes:
        directory: of blobs by `sha256/HEX` on this machine.
        image: a name in the repository of a registry, to be asked by ranges. Credentials and
            mirrors are those of the user.
    """

    directory: str = ""
    image: str = ""

    def open(self) -> Source:
        """The source."""
        if self.image:
            # The reader is patient; a client that is too would keep it from other sources.
            client = RegistryClient(patience=Patience(attempts=1))
            return RegistrySource(client, Reference.parse(self.image))
        if not self.directory:
            raise InvalidError("an origin of blobs has neither a directory nor an image")
        root = Path(self.directory)
        return LocalSource(lambda digest: root.joinpath(*digest.split(":", 1)))


@dataclass(frozen=True, slots=True)
class Spec:
    """What to serve.

    Attributes:
        directory: where this and the table are.
        cache: the directory of chunks.
        origins: at least one.
        patience: seconds for which failing sources are asked again.
        prefetch: numbers of chunks to read ahead.
        seal: of an encrypted image. The key itself is not written: the server has it unwrapped.
    """

    directory: Path
    cache: Path
    origins: Sequence[Origin]
    patience: float = 30.0
    prefetch: Sequence[int] = ()
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
        return cls(directory, cache, origins, patience, prefetch, seal)

    def chunks(self, tell: Callable[[Rejected], None]) -> Chunks:
        """The device's content."""
        table = Table.decode((self.directory / "table").read_bytes())
        spans = {
            blob.digest: Spans.decode(self._spans(blob.digest).read_bytes())
            for blob in table.blobs
            if blob.kind == "gzip"
        }
        sources = [origin.open() for origin in self.origins]
        others = sources if len(sources) > 1 else ()
        cache = ChunkCache(self.cache)
        cipher = self.seal.open() if self.seal else None
        return Chunks(table, spans, FirstOf(sources), cache, tell, self.patience, others, cipher)

    def _spans(self, digest: str) -> Path:
        return self.directory / f"spans-{digest.removeprefix('sha256:')}"
