"""Pieces of blobs from a registry, by HTTP ranges (RFC 9110, clause 14)."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from bedstone.errors import NotFoundError, UnavailableError


class HttpSource:
    """A repository's blobs.

    Args:
        url: `https://HOST/v2/NAME/blobs`; a digest is appended.
        headers: sent with each request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.AsyncClient(headers=headers, follow_redirects=True, timeout=20)

    async def read(self, digest: str, start: int, length: int) -> bytes:
        """As `Source.read`; a registry that ignores ranges is an UnavailableError."""
        wanted = {"Range": f"bytes={start}-{start + length - 1}"}
        try:
            async with self._client.stream("GET", f"{self._url}/{digest}", headers=wanted) as found:
                if found.status_code == 404:
                    raise NotFoundError(f"the registry has no blob {digest}")
                whole = found.status_code == 200 and start == 0
                if found.status_code != 206 and not whole:
                    raise UnavailableError(
                        f"the registry answered {found.status_code} to a range of blob {digest}"
                    )
                # Never more than was asked for, whatever it sends.
                data = bytearray()
                async for piece in found.aiter_raw():
                    data += piece
                    if len(data) >= length:
                        break
        except httpx.HTTPError as error:
            raise UnavailableError(f"the registry cannot be reached: {error}") from error
        if len(data) < length:
            raise UnavailableError(f"the registry gave {len(data)} bytes of {length}")
        return bytes(data[:length])
