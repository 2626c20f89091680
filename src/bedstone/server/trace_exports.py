"""Where manifests want traces sent: an exporter for each place, as they say now."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bedstone.control.monitoring.traces.export import Answer, Exporter, Post
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.model.monitoring_spec import OtlpSpec

if TYPE_CHECKING:
    import httpx

TIMEOUT = 10.0
_PATH = "/v1/traces"


class Exports:
    """The exporters of all apps, each run while its app's manifest names it."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], tuple[OtlpSpec, Exporter, asyncio.Task[None]]] = {}
        self._client: httpx.AsyncClient | None = None
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Spans that were not taken anywhere, and will not be, since the start."""
        return self._dropped + sum(exporter.dropped for _, exporter, _ in self._running.values())

    def want(self, wanted: Mapping[str, Sequence[OtlpSpec]]) -> None:
        """Send the traces of each app there, and nowhere else."""
        now = {(app, spec.url): spec for app, specs in wanted.items() for spec in specs}
        for key, (spec, exporter, task) in list(self._running.items()):
            if now.get(key) != spec:
                task.cancel()
                del self._running[key]
                self._dropped += exporter.dropped
        for key, spec in now.items():
            if key not in self._running:
                place = urlsplit(spec.url)  # of which the rest may hold a credential
                exporter = Exporter(place.hostname or "", self._post(spec))
                task = asyncio.get_running_loop().create_task(exporter.run())
                self._running[key] = (spec, exporter, task)

    def kept(self, decided: Sequence[Decided]) -> None:
        """Take kept traces."""
        if not self._running:
            return
        for one in decided:
            app = one.spans[0].whose.app
            for (of, _), (_, exporter, _) in self._running.items():
                if of == app:
                    exporter.put(one)

    async def close(self) -> None:
        """End all; what waits is lost."""
        tasks = [task for _, _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _post(self, spec: OtlpSpec) -> Post:
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False)
        client = self._client
        url = spec.url if spec.url.endswith(_PATH) else spec.url.rstrip("/") + _PATH
        headers = {
            **spec.headers,
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
        }
        if spec.bearer:
            headers["authorization"] = f"Bearer {spec.bearer}"

        async def post(body: bytes) -> Answer:
            try:
                answer = await client.post(url, content=body, headers=headers)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
                return Answer(0)
            after = None
            with contextlib.suppress(ValueError):
                said = float(answer.headers.get("retry-after", ""))
                after = said if math.isfinite(said) and said > 0 else None
            return Answer(answer.status_code, after)

        return post
