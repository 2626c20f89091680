"""What whoever applies a manifest fills in from the environment: URLs, headers and secrets.

Rule: nothing here shows a value in a message, since it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from bedstone.errors import InvalidError
from bedstone.model.database_url import resolve_urls
from bedstone.model.fields import Spec
from bedstone.model.interpolation import interpolate
from bedstone.model.monitoring_spec import ExportSpec, MonitoringSpec, ReceiverSpec
from bedstone.model.spec import AppSpec

P = TypeVar("P", bound=Spec)
_KEYS: Final = ("url", "webhook", "bearer", "secret")
_URL: Final = re.compile(r"https?://[^\s/]\S*")


def resolve(spec: AppSpec, environ: Mapping[str, str]) -> AppSpec:
    """A manifest with the references to the environment replaced, but for those in `env:`.

    Who applies a manifest does this, since its own environment is meant: what the server is told is
    what shall be used, so that a variable with another value is a change as any other.

    Raises:
        InvalidError: a variable is not set, or what comes out is no URL.
    """
    spec = resolve_urls(spec, environ)
    receivers = {
        name: _filled(f"receivers.{name}", receiver, environ)
        for name, receiver in spec.receivers.items()
    }
    return spec.model_copy(
        update={
            "receivers": receivers,
            "monitoring": _monitoring(spec.monitoring, environ) if spec.monitoring else None,
        }
    )


def refuse_unresolved(spec: AppSpec) -> None:
    """Refuse what whoever applies should have filled in, without showing it.

    Raises:
        InvalidError: a reference to the environment is left.
    """
    monitoring = spec.monitoring or MonitoringSpec()
    parts: list[tuple[str, ExportSpec | ReceiverSpec]] = [
        *((f"receivers.{name}", receiver) for name, receiver in spec.receivers.items()),
        *(
            (f"monitoring.remote_write[{i}]", item)
            for i, item in enumerate(monitoring.remote_write)
        ),
        *((f"monitoring.otlp[{i}]", item) for i, item in enumerate(monitoring.otlp)),
    ]
    for where, part in parts:
        given = {key: getattr(part, key, None) or "" for key in _KEYS}
        given |= {f"headers.{name}": text for name, text in part.headers.items()}
        for key, text in given.items():
            if "${env." in text:
                raise InvalidError(
                    f"{where}.{key}: a reference to the environment in it was not replaced",
                    hint="whoever applies a manifest replaces ${env.…} in it",
                )


def _monitoring(monitoring: MonitoringSpec, environ: Mapping[str, str]) -> MonitoringSpec:
    return monitoring.model_copy(
        update={
            key: tuple(
                _filled(f"monitoring.{key}[{index}]", export, environ)
                for index, export in enumerate(exports)
            )
            for key, exports in (
                ("remote_write", monitoring.remote_write),
                ("otlp", monitoring.otlp),
            )
        }
    )


def _filled(where: str, part: P, environ: Mapping[str, str]) -> P:
    def value(key: str, text: str) -> str:
        try:
            return interpolate(text, lambda reference: environ.get(reference.name))
        except InvalidError as error:
            raise InvalidError(f"{where}.{key}: {error.message}", hint=error.hint) from error

    headers: Mapping[str, str] = getattr(part, "headers", {})
    update: dict[str, object] = {
        "headers": {name: value(f"headers.{name}", text) for name, text in headers.items()}
    }
    for key in _KEYS:
        text = getattr(part, key, None)
        if text is not None:
            update[key] = value(key, text)
    for key in ("url", "webhook"):
        if key in update and not _URL.fullmatch(str(update[key])):
            raise InvalidError(
                f"{where}.{key}: the value is not a URL of http or https",
                hint="correct the environment variable",
            )
    return part.model_copy(update=update)
