"""Prometheus's HTTP API over our series, under `/prometheus`, and `/metrics` for who scrapes.

Stock clients (Grafana, promtool, prometheus-api-client) query it as they would a Prometheus. Every
path is a reader's; queries may come by POST, too, since they change nothing. Alerts and rules have
their routes where alerts are.

Failures of these paths have Prometheus's shape, where a client gets so far: who is calling is asked
before, and answered as everywhere.

Whatever reads an expression or the series does so in a few threads: it is a reader's, and the event
loop has nodes and proxies to answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from bedstone import __version__
from bedstone.control.monitoring import exposition
from bedstone.control.monitoring.promql import Engine, check
from bedstone.control.monitoring.reading import Matcher, SeriesKey
from bedstone.errors import Error, InvalidError
from bedstone.server.api import Reader, Routes
from bedstone.server.prometheus_forms import BadRequestError, Form, answered, failure, success

ROOT: Final = "/prometheus"
SPOKEN: Final = "2.45.0"
"""The version of Prometheus whose language and API is spoken; Grafana asks for it."""
RECENT: Final = 300
"""Seconds in which a series must have had a value, where nobody says when."""
_EVERY: Final = [Matcher("__name__", "=~", ".+")]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation with its trace."""

    labels: Mapping[str, str]
    value: float
    time: float


@dataclass(frozen=True, slots=True)
class ExemplarSeries:
    """A series with some of its observations."""

    labels: Mapping[str, str]
    exemplars: tuple[Exemplar, ...]


class Exemplars(Protocol):
    """Who remembers which trace an observation belongs to."""

    def exemplars(
        self, selectors: Sequence[Sequence[Matcher]], start: float, end: float
    ) -> Sequence[ExemplarSeries]:
        """Observations of the series that fulfil all matchers of any selector.

        Called in a thread. `start` and `end` are seconds since the epoch.
        """
        ...


T = TypeVar("T")
Handler = Callable[[Form], Awaitable[bytes]]


class Prometheus:
    """The routes of Prometheus's API.

    Args:
        engine: answers expressions.
        exemplars: of traces; none without.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        exemplars: Exemplars | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._reader = engine.reader
        self._exemplars = exemplars
        self._clock = clock
        self._started = clock()
        self._page: tuple[int, str, bytes] = (0, "", b"")
        # Neither the engine's threads, where slow queries are, nor those that all share.
        self._lists = ThreadPoolExecutor(2, "prometheus-lists")

    @property
    def routes(self) -> Routes:
        """Adds the routes."""
        return self._add

    def _add(self, app: FastAPI) -> None:
        paths: dict[str, Handler] = {
            "query": self._query,
            "query_range": self._query_range,
            "query_exemplars": self._query_exemplars,
            "series": self._series,
            "labels": self._labels,
            "format_query": self._format_query,
        }
        for path, handler in paths.items():
            _route(app, path, handler, ("GET", "POST"))
        for path, handler in {
            "metadata": self._metadata,
            "status/buildinfo": self._buildinfo,
            "status/runtimeinfo": self._runtimeinfo,
        }.items():
            _route(app, path, handler, ("GET",))

        @app.get(f"{ROOT}/api/v1/label/{{name}}/values", response_class=Response)
        async def values(name: str, request: Request, _: Reader) -> Response:
            return await _answer(request, lambda form: self._values(name, form))

        @app.get(f"{ROOT}/", response_class=Response, include_in_schema=False)
        async def root(_: Reader) -> Response:
            # Clients look here for whether there is a Prometheus; it has a page, we have a console.
            return Response("Prometheus's HTTP API is at api/v1\n", media_type="text/plain")

        @app.get(f"{ROOT}/-/healthy", response_class=Response)
        @app.get(f"{ROOT}/-/ready", response_class=Response)
        async def healthy(_: Reader) -> Response:
            return Response("Bedstone is healthy.\n", media_type="text/plain")

        @app.get("/metrics", response_class=Response)
        async def metrics(request: Request, _: Reader) -> Response:
            return await self._metrics(request.headers.get("accept", ""))

    # Queries.

    async def _query(self, form: Form) -> bytes:
        expression = form.demanded("query")
        # A client's "now" is a second that is not over yet: the engine takes the last that is.
        at = math.floor(form.time("time", self._clock()))
        return await self._engine.in_thread(
            lambda gone: answered(self._engine.instant(_checked(expression), at, gone))
        )

    async def _query_range(self, form: Form) -> bytes:
        expression = form.demanded("query")
        form.demanded("start")
        form.demanded("end")
        start, end = math.floor(form.time("start", 0)), math.floor(form.time("end", 0))
        step = form.seconds("step")
        if end < start:
            raise BadRequestError("invalid parameter 'end': end timestamp must not be before start")
        return await self._engine.in_thread(
            lambda gone: answered(self._engine.range(_checked(expression), start, end, step, gone))
        )

    async def _query_exemplars(self, form: Form) -> bytes:
        expression = form.demanded("query")
        start, end = self._span(form)

        def answer() -> bytes:
            selectors = _selectors_within(_checked(expression))
            known = self._exemplars
            found = known.exemplars(selectors, start, end) if known else ()
            return success([_exemplar_series(each) for each in found])

        return await self._beside(answer)

    async def _format_query(self, form: Form) -> bytes:
        expression = form.demanded("query")

        def answer() -> bytes:
            import promql_parser

            return success(promql_parser.parse(_checked(expression)).prettify())

        return await self._beside(answer)

    async def _beside(self, work: Callable[[], T]) -> T:
        """Do what reads no points, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._lists, work)

    # What there is.

    async def _series(self, form: Form) -> bytes:
        if not form.all("match[]"):
            raise BadRequestError("no match[] parameter provided")

        def rows(found: list[SeriesKey]) -> Sequence[object]:
            return [{"__name__": key.name, **dict(key.labels)} for key in found]

        return await self._listed(form, rows)

    async def _labels(self, form: Form) -> bytes:
        def names(found: list[SeriesKey]) -> Sequence[object]:
            labels = {name for key in found for name, _ in key.labels}
            return sorted({"__name__", *labels}) if found else []

        return await self._listed(form, names)

    async def _values(self, name: str, form: Form) -> bytes:
        def values(found: list[SeriesKey]) -> Sequence[object]:
            if name == "__name__":
                return sorted({key.name for key in found})
            return sorted({value for key in found for label, value in key.labels if label == name})

        return await self._listed(form, values)

    async def _listed(
        self, form: Form, listing: Callable[[list[SeriesKey]], Sequence[object]]
    ) -> bytes:
        """What is made of the series that fulfil any of `match[]`, up to the limit."""
        limit = form.limit()
        find = self._finder(form)

        def answer() -> bytes:
            rows = listing(find())
            if limit and len(rows) > limit:
                return success(rows[:limit], ("results truncated due to limit",))
            return success(rows)

        return await self._beside(answer)

    def _finder(self, form: Form) -> Callable[[], list[SeriesKey]]:
        """Finds the series that fulfil any of `match[]`, or all, in the span."""
        start, end = self._span(form)

        def find() -> list[SeriesKey]:
            selectors = [_selector(text) for text in form.all("match[]")] or [_EVERY]
            found: dict[SeriesKey, None] = {}
            for matchers in selectors:
                found.update(
                    dict.fromkeys(self._reader.series(matchers, math.floor(start), math.floor(end)))
                )
            return list(found)

        return find

    def _span(self, form: Form) -> tuple[float, float]:
        end = form.time("end", self._clock())
        return form.time("start", end - RECENT), end

    async def _metadata(self, form: Form) -> bytes:
        wanted, limit = form.get("metric"), form.limit()
        find = self._finder(Form(()))
        keys = await self._beside(find)
        families = exposition.families([(key, 0.0) for key in keys])
        found = {
            family.name: [{"type": family.kind, "help": family.help, "unit": family.unit}]
            for family in (*exposition.catalogue(), *families)
            if wanted in ("", family.name)
        }
        return success(dict(list(found.items())[: limit or None]))

    async def _buildinfo(self, _: Form) -> bytes:
        return success(
            {
                "version": SPOKEN,
                "revision": __version__,
                "branch": "",
                "buildUser": "",
                "buildDate": "",
                "goVersion": "",
                "application": "Bedstone",
            }
        )

    async def _runtimeinfo(self, _: Form) -> bytes:
        find = self._finder(Form(()))
        count = len(await self._beside(find))
        return success(
            {
                "startTime": _moment(self._started),
                "serverTime": _moment(self._clock()),
                "lastSecond": self._reader.last(),
                "timeSeriesCount": count,
            }
        )

    # Scraping.

    async def _metrics(self, accept: str) -> Response:
        """The last complete second of every series."""
        media = exposition.negotiated(accept)
        second = await asyncio.to_thread(self._complete)
        if self._page[:2] != (second, media):
            body = await asyncio.to_thread(self._written, second, media)
            self._page = (second, media, body)
        return Response(self._page[2], headers={"content-type": media})

    def _complete(self) -> int:
        last = self._reader.last()
        incomplete = self._reader.incomplete(last - RECENT, last)
        return next((s for s in range(last, last - RECENT, -1) if s not in incomplete), last)

    def _written(self, second: int, media: str) -> bytes:
        if not second:
            return exposition.written([], media)
        selection = self._reader.select(_EVERY, second, second, 1)
        keys = map(SeriesKey, selection.names, selection.labels, selection.kinds)
        values = selection.values[:, 0].tolist()
        present = [(k, v) for k, v in zip(keys, values, strict=True) if not math.isnan(v)]
        return exposition.written(present, media)


def _route(app: FastAPI, path: str, handler: Handler, methods: Sequence[str]) -> None:
    async def endpoint(request: Request, _: Reader) -> Response:
        return await _answer(request, handler)

    app.add_api_route(
        f"{ROOT}/api/v1/{path}",
        endpoint,
        methods=list(methods),
        name=f"prometheus {path}",
        response_class=Response,
        include_in_schema=False,  # it is described by Prometheus
    )


async def _answer(request: Request, handler: Handler) -> Response:
    """Call a handler with the request's parameters; a failure has Prometheus's shape."""
    try:
        form = await _form(request)
        body, status = await handler(form), 200
    except Error as error:
        status, body = failure(error)
    return Response(body, status, media_type="application/json")


async def _form(request: Request) -> Form:
    try:
        return Form.of(request.url.query, (await request.body()).decode())
    except ValueError as error:
        raise BadRequestError("the parameters cannot be read") from error


def _checked(expression: str) -> str:
    """An expression that can be evaluated. Long ones take long: call it in a thread."""
    try:
        check(expression)
    except InvalidError as error:
        raise BadRequestError(
            f"invalid parameter 'query': {error.message}", hint=error.hint
        ) from error
    return expression


def _selector(text: str) -> list[Matcher]:
    """The conditions of one `match[]`."""
    from bedstone.control.monitoring.promql import selectors

    _checked(text)
    try:
        return selectors.single(text)
    except InvalidError as error:
        raise BadRequestError(f"invalid parameter 'match[]': {error.message}") from error


def _selectors_within(expression: str) -> list[list[Matcher]]:
    from bedstone.control.monitoring.promql import selectors

    return selectors.within(expression)


def _exemplar_series(series: ExemplarSeries) -> dict[str, Any]:
    from bedstone.control.monitoring.promql.text import plain

    return {
        "seriesLabels": dict(series.labels),
        "exemplars": [
            {"labels": dict(each.labels), "value": plain(each.value), "timestamp": each.time}
            for each in series.exemplars
        ],
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
