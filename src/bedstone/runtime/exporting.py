"""How a served application's spans and metrics leave it: OpenTelemetry's own exporters, kept quiet.

Owns what both have in common: whether, where and as whom they are exported, and the end of it.

Rules:
- Nothing here is loaded before there is something to export. It is loaded on a thread or once, and
  a failure costs telemetry, not the application.
- Export runs beside the application and never holds it up: what cannot be sent is dropped, and that
  is said at most once a minute. When the application ends, what is there is sent, for `FLUSH`
  seconds at most.
- The exporters' own calls are neither traced nor bounded by a request's deadline (they run in
  threads without its context), and to this machine they go past every proxy.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

logger = logging.getLogger(__name__)

FLUSH: Final = 2.0
"""Seconds that the end of the application waits for the last export."""
SILENCE: Final = 60.0
"""Seconds for which nothing more is said about what cannot be exported."""

Signal = Literal["traces", "metrics"]
_CLASS: Final = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}
_PACKAGE: Final = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")
_closing: list[Callable[[], object]] = []


def enabled(signal: Signal) -> bool:
    """Whether the environment names a place to export to (OpenTelemetry's variables)."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") != "otlp":
        return False
    if not endpoint(signal):
        return False
    if not _installed(_module(signal)):
        logger.warning("telemetry.no_exporter protocol=%s", _protocol(signal))
        return False
    return True


def endpoint(signal: Signal) -> str:
    """Where to export to; empty for nowhere."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    return own or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


def resource(service: str) -> Resource:
    """Who exports: what the environment says, and `service` where that names none."""
    from opentelemetry.sdk.resources import Resource

    environ = os.environ
    known = {
        "service.name": environ.get("OTEL_SERVICE_NAME")
        or environ.get("BEDSTONE_WORKLOAD")
        or service,
        "service.namespace": environ.get("BEDSTONE_APP"),
        "service.instance.id": environ.get("BEDSTONE_INSTANCE"),
        "service.version": environ.get("BEDSTONE_REVISION"),
        "bedstone.cell": environ.get("BEDSTONE_CELL"),
    }
    return Resource.create({name: value for name, value in known.items() if value})


def exporter(signal: Signal) -> Any:
    """OpenTelemetry's exporter, as its variables configure it."""
    where, what = _CLASS[signal]
    make = getattr(importlib.import_module(f"{_PACKAGE[_protocol(signal)]}.{where}"), what)
    # They log each failure, in the application's log.
    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
        library = logging.getLogger(name)
        if library.level == logging.NOTSET:
            library.setLevel(logging.CRITICAL)
    if _protocol(signal) == "grpc" or urlsplit(endpoint(signal)).hostname not in _LOCAL:
        return make()
    import requests

    session = requests.Session()
    session.trust_env = False  # whatever the application did to NO_PROXY
    return make(session=session)


class Complaints:
    """Says that something is not exported, not more than once in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent_until = 0.0
        self._count = 0

    def add(self, signal: Signal, count: int) -> None:
        """So many were not exported."""
        self._count += count
        now = self._clock()
        if now >= self._silent_until:
            logger.warning("telemetry.not_exported signal=%s count=%d", signal, self._count)
            self._silent_until, self._count = now + SILENCE, 0


def closing(close: Callable[[], object]) -> None:
    """Have `close` called when the application ends."""
    if not _closing:
        atexit.register(finish)
    _closing.append(close)


def finish(patience: float = FLUSH) -> None:
    """Send what is there, and end; returns after `patience` seconds at most."""
    ending = [threading.Thread(target=_quietly, args=(close,), daemon=True) for close in _closing]
    _closing.clear()
    for thread in ending:
        thread.start()
    until = time.monotonic() + patience
    for thread in ending:
        thread.join(max(0.0, until - time.monotonic()))


def _quietly(close: Callable[[], object]) -> None:
    try:
        close()
    except Exception as error:  # noqa: BLE001 - foreign code, at the very end
        logger.debug("telemetry.not_closed error=%r", error)


def _protocol(signal: Signal) -> str:
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
    return own or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


def _module(signal: Signal) -> str:
    package = _PACKAGE.get(_protocol(signal))
    return f"{package}.{_CLASS[signal][0]}" if package else ""


def _installed(module: str) -> bool:
    try:
        return bool(module) and find_spec(module) is not None
    except ModuleNotFoundError:
        return False
