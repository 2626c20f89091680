"""Where manifests want traces sent, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bedstone.control.monitoring.traces import export
from bedstone.control.monitoring.traces.export import Answer
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import decode
from bedstone.model.monitoring_spec import OtlpSpec
from bedstone.server.trace_exports import Exports
from bedstone.testing.spans import span, trace_id


class Place:
    """A system that takes traces."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.traces: list[bytes] = []
        self.statuses: list[int] = []
        self.retry_after = ""
        self._changed = threading.Condition()
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(place.take(self.path, dict(self.headers), body))
                if place.retry_after:
                    self.send_header("retry-after", place.retry_after)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Write nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Take one request, and say what to answer."""
        with self._changed:
            status = self.statuses.pop(0) if self.statuses else 200
            self.heads.append((path, {name.lower(): value for name, value in headers.items()}))
            if status == 200:
                self.traces += [one.trace for one in decode(gzip.decompress(body))]
            self._changed.notify_all()
            return status

    async def until(self, count: int) -> None:
        """Wait until so many spans have come."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.traces) >= count, 10)

        assert await asyncio.to_thread(wait), self.traces


@contextlib.contextmanager
def place() -> Iterator[Place]:
    made = Place()
    with made.server:
        thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            made.server.shutdown()
            thread.join()


def kept(number: int) -> list[Decided]:
    return [Decided(trace_id(number), [span(number)], "sampled", late=False)]


def test_traces_go_where_their_apps_manifest_says_with_its_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "PERIOD", 0.01)
    monkeypatch.setattr(export, "FIRST_PAUSE", 0.01)

    async def scene() -> None:
        exports = Exports()
        with place() as one, place() as other:
            one.statuses = [503]
            spec = OtlpSpec(url=f"{one.url}/", bearer="token", headers={"x-tenant": "a"})
            named = OtlpSpec(url=f"{other.url}/custom/v1/traces")
            exports.want({"bank": [spec], "shop": [named]})
            exports.kept(kept(1))
            await one.until(1)
            path, headers = one.heads[0]
            assert path == "/v1/traces"
            assert headers["authorization"] == "Bearer token"
            assert (headers["x-tenant"], headers["content-encoding"]) == ("a", "gzip")
            exports.want({"bank": [spec, named]})
            exports.kept(kept(2))
            await one.until(2)
            await other.until(1)
            assert other.heads[0][0] == "/custom/v1/traces"
            exports.want({"bank": [named]})
            exports.kept(kept(3))
            await other.until(2)
            assert one.traces == [trace_id(1), trace_id(2)]
            assert other.traces == [trace_id(2), trace_id(3)]
            await exports.close()

    asyncio.run(scene())


def test_a_place_that_is_not_there_costs_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PERIOD", 0.01)

    async def scene() -> None:
        exports = Exports()
        with place() as gone:
            url = gone.url
        with place() as there:
            exports.want({"bank": [OtlpSpec(url=url), OtlpSpec(url=there.url)]})
            for number in range(1, 50):
                exports.kept(kept(number))
            await there.until(49)
        await exports.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("said", "after"), [("7", 7.0), ("0", None), ("-5", None), ("nan", None), ("inf", None)]
)
def test_a_time_to_wait_that_is_none_counts_for_nothing(said: str, after: float | None) -> None:
    async def scene() -> None:
        exports = Exports()
        with place() as busy:
            busy.statuses, busy.retry_after = [503], said
            assert await exports._post(OtlpSpec(url=busy.url))(b"") == Answer(503, after)
        await exports.close()

    asyncio.run(scene())


def test_what_was_refused_stays_counted_when_a_place_is_named_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "PERIOD", 0.01)

    async def scene() -> None:
        exports = Exports()
        with place() as refusing:
            refusing.statuses = [403]
            exports.want({"bank": [OtlpSpec(url=refusing.url)]})
            exports.kept(kept(1))
            async with asyncio.timeout(10):
                while not exports.dropped:  # noqa: ASYNC110 - another thread answers
                    await asyncio.sleep(0.01)
            exports.want({})
            assert exports.dropped == 1
        await exports.close()

    asyncio.run(scene())


def test_a_header_that_cannot_be_sent_stops_no_other_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "PERIOD", 0.01)
    monkeypatch.setattr(export, "FIRST_PAUSE", 0.01)

    async def scene() -> None:
        exports = Exports()
        with place() as there:
            wrong = OtlpSpec(url=f"{there.url}/a", headers={"x-tenant": "\u6f22"})
            exports.want({"bank": [wrong, OtlpSpec(url=there.url)]})
            exports.kept(kept(1))
            await there.until(1)
            exports.kept(kept(2))
            await there.until(2)
            assert all(not task.done() for _, _, task in exports._running.values())
        await exports.close()

    asyncio.run(scene())


def test_a_log_names_the_host_and_no_credential() -> None:
    async def main() -> None:
        exports = Exports()
        spec = OtlpSpec(url="http://user:topsecret@collector.example:4318/v1?key=topsecret")
        exports.want({"a": [spec]})
        ((_, exporter, _),) = exports._running.values()
        assert exporter._where == "collector.example"
        await exports.close()

    asyncio.run(main())
