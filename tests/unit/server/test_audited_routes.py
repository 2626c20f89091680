"""Every route that changes something is an operator's, and knows who it is: the audit asks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fastapi.routing import APIRoute

from bedstone.server.actions import Actions
from bedstone.server.alert_routes import alert_routes
from bedstone.server.api import build_api
from bedstone.server.console import ConsoleService
from bedstone.server.console_views import ConsoleViews
from bedstone.server.lines import Lines
from bedstone.server.prometheus import Prometheus
from bedstone.server.seconds import second_routes
from bedstone.server.tapping import Tapping
from bedstone.server.tracing import Tracing

CHANGES = {"POST", "PUT", "PATCH", "DELETE"}
ONLY_READS = {
    "/v1/apps/{name}/plan",  # says what an apply would change
    *(
        f"/prometheus/api/v1/{path}"  # Prometheus's clients may ask by POST
        for path in (
            "query",
            "query_range",
            "query_exemplars",
            "series",
            "labels",
            "format_query",
        )
    ),
}
LOOKED_AT = {"/v1/apps/{name}/tap"}
"""Reading that stands in the audit, too."""


class _Nothing:
    """Has whatever is asked for; only routes are looked at."""

    def __getattr__(self, name: str) -> Any:
        return _Nothing()

    def __call__(self, *_: object, **__: object) -> Any:
        return _Nothing()


def routes() -> Iterator[APIRoute]:
    nothing = cast("Any", _Nothing())
    api = build_api(
        nothing,
        nothing,
        nothing,
        nothing,
        (
            second_routes(nothing, nothing),
            ConsoleViews(nothing, nothing, nothing, "").add_routes,
            ConsoleService(None, "", nothing, nothing).add_routes,
            Actions(nothing).add_routes,
            alert_routes(nothing),
            Lines(nothing, nothing).add_routes,
            Tapping(nothing, nothing, nothing).add_routes,
            Prometheus(nothing).routes,
            Tracing(Path(), nothing, nothing).add_routes,
        ),
    )
    return (route for route in api.routes if isinstance(route, APIRoute))


def test_who_changes_something_is_an_operator_and_known() -> None:
    changing = [
        route
        for route in routes()
        if ((route.methods or set()) & CHANGES and route.path not in ONLY_READS)
        or route.path in LOOKED_AT
    ]
    assert {"/v1/silences", "/v1/sampling", "/v1/apps/{name}", "/v1/tokens"} <= {
        route.path for route in changing
    }
    for route in changing:
        # A parameter by that name is used, as the linter demands; `_` would be who is not asked.
        assert "who" in inspect.signature(route.endpoint).parameters, route.path
        calls = {getattr(it.call, "__name__", "") for it in route.dependant.dependencies}
        assert "_operator" in calls, route.path
