"""What whoever applies a manifest fills in, and what is never shown of it."""

from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.model.manifest import parse_manifest
from bedstone.model.resolving import refuse_unresolved, resolve

TEXT = """\
app: a
workloads: {w: {command: [x], env: {A: "${env.LATER:-x}"}}}
monitoring:
  remote_write: [{url: "${env.WRITE}", bearer: "${env.TOKEN}"}]
  otlp: [{url: "http://h", headers: {x-key: "k ${env.TOKEN}"}}]
receivers:
  people: {webhook: "http://h/${env.TOKEN}", secret: "${env.TOKEN}", headers: {a: $$5}}
"""
ENVIRON = {"WRITE": "http://w/api", "TOKEN": "hush"}


def test_references_are_replaced_and_the_server_takes_the_result() -> None:
    spec = parse_manifest(TEXT).spec
    with pytest.raises(InvalidError, match="was not replaced") as caught:
        refuse_unresolved(spec)
    assert "env." in (caught.value.hint or "")
    spec = resolve(spec, ENVIRON)
    refuse_unresolved(spec)
    assert spec.monitoring is not None
    assert spec.monitoring.remote_write[0].url == "http://w/api"
    assert spec.monitoring.remote_write[0].bearer == "hush"
    assert spec.monitoring.otlp[0].headers == {"x-key": "k hush"}
    receiver = spec.receivers["people"]
    assert (receiver.webhook, receiver.secret) == ("http://h/hush", "hush")
    assert receiver.headers == {"a": "$5"}
    assert spec.workloads["w"].env == {"A": "${env.LATER:-x}"}


def test_a_manifest_without_monitoring_stays_as_it_is() -> None:
    spec = parse_manifest("app: a\nworkloads: {w: {command: [x]}}\n").spec
    assert resolve(spec, {}) == spec


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TOKEN": "hush"}, r"monitoring\.remote_write\[0\]\.url: .*WRITE is not set"),
        ({"TOKEN": "hush", "WRITE": "hush"}, r"remote_write\[0\]\.url: the value is not a URL"),
        ({"WRITE": "http://w", "TOKEN": ""}, None),
    ],
)
def test_what_cannot_be_filled_in_is_named_and_not_shown(
    environ: dict[str, str], message: str | None
) -> None:
    spec = parse_manifest(TEXT).spec
    if message is None:
        refuse_unresolved(resolve(spec, environ))
        return
    with pytest.raises(InvalidError, match=message) as caught:
        resolve(spec, environ)
    assert "hush" not in caught.value.message
