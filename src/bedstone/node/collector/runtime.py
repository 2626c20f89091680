"""What the proxy does only while it is told to: runtime values, set through its administration.

They change no listener, so no connection is drained. A proxy that is started again has forgotten
them, and is told again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from bedstone.errors import Error
from bedstone.node.http import request

PERIOD = 1.0
"""Seconds after which it is looked at whether the proxy was started again, or has to be told."""
_log = logging.getLogger(__name__)


def share(value: float) -> str:
    """A share of requests (0 to 1) as a runtime value: whole percents, at least one above 0.

    Envoy (1.40) takes nothing finer from its administration: what is no number counts for nothing.
    """
    return str(min(100, math.ceil(max(value, 0.0) * 100 - 1e-9)))


class ProxyRuntime:
    """The runtime values of one proxy."""

    def __init__(self, admin: Path, life: Callable[[], object]) -> None:
        """Args: the proxy's socket; what is another value after each start of it."""
        self._admin = admin
        self._life = life
        self._wanted: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._told_life: object = None
        self._changed = asyncio.Event()

    def set(self, key: str, value: str | None) -> None:
        """Let the proxy have this value; None for the one of its configuration."""
        if value is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = value
        self._changed.set()

    async def run(self) -> None:
        """Keep the proxy told until cancelled."""
        while True:
            self._changed.clear()
            await self.tell()
            try:
                async with asyncio.timeout(PERIOD):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def tell(self) -> bool:
        """Tell what the proxy has not been told; whether it knows everything now."""
        life = self._life()
        if life is None:
            return False
        if life != self._told_life:
            self._told, self._told_life = {}, life
        # an empty value takes the key away
        gone = {key: "" for key in self._told if key not in self._wanted}
        news = gone | {k: v for k, v in self._wanted.items() if self._told.get(k) != v}
        if not news:
            return True
        query = "&".join(
            f"{quote(key, safe='')}={quote(text, safe='')}" for key, text in news.items()
        )
        try:
            answer = await request(
                str(self._admin), "POST", f"/runtime_modify?{query}", timeout=2.0
            )
        except Error as error:
            _log.info("runtime not set", extra={"reason": error.message})
            return False
        if answer.status != 200:
            _log.warning("runtime refused", extra={"reason": answer.body[:200].decode("latin-1")})
            return False
        self._told = {key: text for key, text in (self._told | news).items() if text}
        return True
