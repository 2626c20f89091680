"""Names in the store: what an image's reference means here, and what is attached to content.

Each is a file that is replaced whole. Methods that write are called with the garbage collector kept
away (`ContentStore.adding`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import digests
from bedstone.images.files import make_directory, replace_file, sync_directory
from bedstone.images.models import Descriptor, dump
from bedstone.images.reference import Reference


@dataclass(frozen=True, slots=True)
class Named:
    """A reference of the store.

    Args:
        reference: the image's name.
        descriptor: of the manifest or index that it means.
        updated: when it came to mean that, in seconds since the epoch.
    """

    reference: Reference
    descriptor: Descriptor
    updated: float


class References:
    """The names of a store, in a directory."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock

    def put(self, reference: Reference, descriptor: Descriptor) -> None:
        """Let a name mean that."""
        record = {
            "reference": str(reference),
            "descriptor": dump(descriptor),
            "updated": self._clock(),
        }
        replace_file(self._path(reference), json.dumps(record).encode())

    def get(self, reference: Reference) -> Descriptor:
        """What a name means. Raises NotFoundError."""
        named = self._read(self._path(reference))
        if named is None:
            raise NotFoundError(
                f"no image named {reference.familiar} is here",
                hint=f"`bedstone image pull {reference.familiar}` fetches it",
            )
        return named.descriptor

    def delete(self, reference: Reference) -> None:
        """Forget a name, durably. Raises NotFoundError."""
        try:
            self._path(reference).unlink()
        except FileNotFoundError:
            raise NotFoundError(
                f"no image named {reference.familiar} is here", hint="`bedstone image ls` shows all"
            ) from None
        sync_directory(self._folder)

    def all(self) -> list[Named]:
        """All of them, sorted."""
        found = (self._read(path) for path in self._folder.glob("*.json"))
        return sorted((named for named in found if named), key=lambda one: str(one.reference))

    def _path(self, reference: Reference) -> Path:
        key = hashlib.sha256(str(reference).encode()).hexdigest()
        return self._folder / f"{key}.json"

    def _read(self, path: Path) -> Named | None:
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return Named(
            Reference.parse(record["reference"]),
            Descriptor.model_validate(record["descriptor"]),
            float(record["updated"]),
        )


class Attachments:
    """Descriptors of artifacts about content, by the content's digest and a kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, subject: str, kind: str, descriptor: Descriptor) -> None:
        """Attach one; the last of a kind stays. Raises InvalidError."""
        if not kind.isascii() or not kind.replace("-", "").isalnum():
            raise InvalidError(f"got kind {kind!r}, expected letters, digits and hyphens")
        folder = self._path(subject)
        make_directory(folder)
        replace_file(folder / f"{kind}.json", json.dumps(dump(descriptor)).encode())

    def get(self, subject: str) -> Mapping[str, Descriptor]:
        """What is attached to content, by kind. Raises InvalidError."""
        return {
            path.stem: Descriptor.model_validate_json(path.read_bytes())
            for path in sorted(self._path(subject).glob("*.json"))
        }

    def sweep(self, kept: set[str]) -> None:
        """Forget what is attached to content that is gone."""
        for folder in self._folder.iterdir():
            if folder.name.replace("-", ":", 1) not in kept:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()

    def _path(self, subject: str) -> Path:
        algorithm, value = digests.parts(subject)
        return self._folder / f"{algorithm}-{value}"
