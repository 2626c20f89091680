"""How a webhook is told: Alertmanager's JSON, version 4, and a signature.

Existing receivers of Alertmanager take it as it is
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).

The signature, where a secret is declared, is the header `x-bedstone-signature: t=SECONDS,v1=HEX`,
with the HMAC-SHA-256 of `SECONDS.BODY`: whoever checks it and the time knows that it was not
changed, and is not an old one sent again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any, Final

from bedstone.control.monitoring.alerts.groups import Due
from bedstone.model.alert_records import ToldAlert

SIGNATURE: Final = "x-bedstone-signature"
LARGEST: Final = 100
"""Alerts in one notification; it says how many more there are."""
_NEVER: Final = "0001-01-01T00:00:00Z"


def payload(due: Due, now: float, url: str = "") -> bytes:
    """The body of a notification.

    Args:
        due: what is told.
        now: when what is over ended, seconds since the epoch.
        url: where people can see the alerts.
    """
    alerts = [
        *(_alert(alert, url, None) for alert in due.firing),
        *(_alert(alert, url, now) for alert in due.resolved),
    ]
    labels = [alert["labels"] for alert in alerts]
    group = ", ".join(f'{name}="{value}"' for name, value in sorted(due.record.labels.items()))
    body = {
        "version": "4",
        "groupKey": f'{{app="{due.target.app}"}}:{{{group}}}',
        "truncatedAlerts": max(0, len(alerts) - LARGEST),
        "status": "firing" if due.firing else "resolved",
        "receiver": due.target.name,
        "groupLabels": due.record.labels,
        "commonLabels": _common(labels),
        "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
        "externalURL": url,
        "alerts": alerts[:LARGEST],
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: str, body: bytes, now: float) -> str:
    """The value of the header that signs a body."""
    at = str(int(now))
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def _alert(alert: ToldAlert, url: str, ended: float | None) -> dict[str, Any]:
    labels = {"alertname": alert.labels.get("rule", ""), **alert.labels}
    annotations = {"summary": alert.summary} if alert.summary else {}
    if alert.value is not None:
        annotations["value"] = f"{alert.value:.6g}"
    return {
        "status": "firing" if ended is None else "resolved",
        "labels": labels,
        "annotations": annotations,
        "startsAt": _time(alert.started),
        "endsAt": _NEVER if ended is None else _time(ended),
        "generatorURL": url,
        "fingerprint": alert.fingerprint,
    }


def _common(each: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all have alike."""
    if not each:
        return {}
    first, *rest = each
    return {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in rest)
    }


def _time(at: float) -> str:
    text = dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
