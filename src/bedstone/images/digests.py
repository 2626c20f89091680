"""Digests: the names of content (OCI image-spec, descriptor.md, "Digests").

Rule: a digest that was checked here is safe as a part of a path.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from hashlib import _Hash

_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")
_BLOCK = 1 << 20


def valid(text: str) -> bool:
    """Whether it is a digest that can be verified: sha256 or sha512, lower-case hexadecimal."""
    algorithm, _, value = text.partition(":")
    return _LENGTHS.get(algorithm) == len(value) and _HEX.match(value) is not None


def check(text: str) -> str:
    """The text itself.

    Raises:
        InvalidError: it is no digest, or of an algorithm that is not supported.
    """
    if not valid(text):
        raise InvalidError(
            f"got digest {text[:160]!r}, expected sha256: or sha512: and hexadecimal digits"
        )
    return text


def _field(text: str) -> str:
    if not valid(text):
        raise ValueError(f"got digest {text[:160]!r}, expected sha256: or sha512: and hexadecimal")
    return text


Digest = Annotated[str, AfterValidator(_field)]
"""A digest inside a document."""


def parts(digest: str) -> tuple[str, str]:
    """Its algorithm and its hexadecimal digits; raises as `check` does."""
    algorithm, _, value = check(digest).partition(":")
    return algorithm, value


def hasher(digest: str) -> _Hash:
    """A fresh hash object of the digest's algorithm; raises as `check` does."""
    return hashlib.new(parts(digest)[0])


def of(data: bytes | bytearray | memoryview) -> str:
    """The sha256 digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def matches(digest: str, data: bytes) -> bool:
    """Whether bytes are what the digest names; raises as `check` does."""
    algorithm, value = parts(digest)
    return hashlib.new(algorithm, data).hexdigest() == value


def of_file(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's content. Raises OSError."""
    state = hashlib.new(algorithm)
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            state.update(view[:count])
    return f"{algorithm}:{state.hexdigest()}"
