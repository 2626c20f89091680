"""Metrics that an application makes with OpenTelemetry's API, exported without code of set-up.

Rules:
- The metrics library is loaded when the application asks for its first meter: one without metrics
  pays nothing. A meter asked for while the application is imported is served when that is over, so
  that an application which sets up metrics itself comes first.
- Values are exported every second, cumulative since the process began.
- The instrumentations of clients make no metrics: the proxies count these calls.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from bedstone.runtime import exporting

logger = logging.getLogger(__name__)

_PERIOD_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
_PERIOD = 1000
"""Milliseconds between two exports."""
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
"""Buckets of histograms in seconds. OpenTelemetry's own, 0, 5, 10 …, suit milliseconds: nearly all
durations in seconds would lie in one of them, and a quantile of them say nothing."""


class Meters:
    """Waits for the application's first meter.

    Args:
        provide: sets up metrics; called once.
    """

    def __init__(self, provide: Callable[[], None]) -> None:
        self._provide = provide
        self._wanted = False
        self._serving = False
        self._done = False

    def watch(self) -> None:
        """From now on; before the application is imported."""
        wrapt.register_post_import_hook(self._imported, "opentelemetry.metrics")

    def serve(self) -> None:
        """The application is imported."""
        self._serving = True
        if self._wanted:
            self._set_up()

    def _imported(self, module: ModuleType) -> None:
        wrapt.wrap_function_wrapper(module, "get_meter", self._asked)

    def _asked(self, wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        name = str(args[0] if args else kwargs.get("name", ""))
        own = len(args) > 2 or kwargs.get("meter_provider") is not None
        if not own and not name.startswith("opentelemetry."):
            self._wanted = True
            if self._serving:
                self._set_up()
        return wrapped(*args, **kwargs)

    def _set_up(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            self._provide()
        except Exception as error:  # noqa: BLE001 - versions of foreign libraries differ in any way
            logger.warning("telemetry.no_metrics error=%r", error)


def meters(service: str) -> Meters | None:
    """What waits for meters, if the environment names a place to export to."""
    return Meters(lambda: provide(service)) if exporting.enabled("metrics") else None


def provide(service: str) -> None:
    """Set up metrics with an exporter, unless the application has done so itself."""
    from opentelemetry import metrics

    if not type(metrics.get_meter_provider()).__name__.startswith("_Proxy"):
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    inner = exporting.exporter("metrics")
    _tell(inner)
    period = None if _PERIOD_VARIABLE in os.environ else _PERIOD
    provider = MeterProvider(
        [PeriodicExportingMetricReader(inner, export_interval_millis=period)],
        exporting.resource(service),
        shutdown_on_exit=False,
        views=[_seconds()],
    )
    exporting.closing(provider.shutdown)
    metrics.set_meter_provider(provider)


def _seconds() -> Any:
    """What gives histograms in seconds their buckets, unless the application names its own."""
    from opentelemetry.sdk.metrics import Histogram
    from opentelemetry.sdk.metrics.view import Aggregation, ExplicitBucketHistogramAggregation, View

    own, ours = ExplicitBucketHistogramAggregation(), ExplicitBucketHistogramAggregation(_SECONDS)

    class Seconds(Aggregation):
        def _create_aggregation(self, instrument: Any, *args: Any, **kwargs: Any) -> Any:
            advised = getattr(instrument, "_advisory", None)
            named = getattr(advised, "explicit_bucket_boundaries", None) is not None
            return (own if named else ours)._create_aggregation(instrument, *args, **kwargs)  # noqa: SLF001

    return View(instrument_type=Histogram, instrument_unit="s", aggregation=Seconds())


def without_metrics() -> dict[str, Any]:
    """What an instrumentation is given so that it makes no metrics."""
    return {"meter_provider": importlib.import_module("opentelemetry.metrics").NoOpMeterProvider()}


def _tell(inner: Any) -> None:
    """Have its failures told now and then."""
    export, complaints = inner.export, exporting.Complaints()

    def told(*args: Any, **kwargs: Any) -> Any:
        result = export(*args, **kwargs)
        if getattr(result, "name", "SUCCESS") != "SUCCESS":
            complaints.add("metrics", 1)
        return result

    inner.export = told
