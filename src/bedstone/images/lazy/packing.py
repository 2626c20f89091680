"""Zstd frames of metadata: they may come from anybody, so none unpacks to more than a limit."""

from __future__ import annotations

import sys

import cramjam

from bedstone.errors import InvalidError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGEST = 2 << 30
"""Bytes that one unpacks to at most: metadata of some ten million files."""


def pack(data: bytes) -> bytes:
    """One frame; the same bytes give the same."""
    return bytes(cramjam.zstd.compress(data, level=9))


def unpack(data: bytes, limit: int = LARGEST) -> bytes:
    """The content of one frame.

    Raises:
        InvalidError: it is none, it is cut, or its content is larger than `limit`.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        content = decompressor.decompress(data, limit)
    except zstd.ZstdError as error:
        raise InvalidError(f"it cannot be unpacked: {error}") from error
    if not decompressor.eof:
        raise InvalidError(f"it is cut, or unpacks to more than {limit} bytes")
    return content
