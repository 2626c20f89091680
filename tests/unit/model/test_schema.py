"""The published JSON Schema, checked by an independent validator."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bedstone.model.manifest import parse_manifest
from bedstone.model.positions import read_document
from bedstone.model.schema import DIALECT, describe, json_schema, keys_at, schema_at
from bedstone.model.template import template

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*/bedstone.yaml"))
FULL = """\
app: bank
gateway:
  port: 8080
  address: 0.0.0.0
  routes:
    - {path: /, to: accounts}
    - {path: /risk, to: risk, strip: true, host: api.example.org, timeout: 5s}
workloads:
  accounts:
    run: accounts.main:make.app
    path: .
    python: .venv/bin/python
    env: {A: "${databases.ledger.url}", B: "${env.HOME:-x}"}
    writes: [../data, ~/models]
    prepare: [python, migrate.py]
    replicas: 0
    isolation: process
    protocol: http
    uses: [ledger, risk]
    ready: /healthz
    live: {path: /healthz, interval: 500ms, timeout: 2, failures: 5}
    start_timeout: 5m
    stop_timeout: 1.5
    timeout: 1h
    limits: {memory: 256MiB, cpu: 0.5, files: 100, processes: 10}
  risk:
    command: [python, risk.py]
    protocol: grpc
    ready: tcp
    live: {command: [x], interval: 1s}
  own:
    image: ghcr.io/acme/app:1
  other:
    image: python:3.12
    isolation: microvm
    command: [x]
    ready: {tcp: true, interval: 1s}
    limits: {memory: 1000000}
databases:
  ledger: {engine: postgres}
  elsewhere: {url: "postgres://user@host/db"}
monitoring:
  traces: {slow: 1s, share: 10%}
  remote_write: [{url: "http://127.0.0.1:9090/api/v1/write", bearer: "${env.T:-x}"}]
  otlp: [{url: "${env.OTLP:-http://127.0.0.1:4318}", headers: {x-a: b}}]
  disabled: [transaction-stuck]
alerts:
  errors: {when: bedstone_request_errors_total > 5, for: 2m, severity: page}
  budget:
    objective: 99.9%
    of: gateway
    period: 4w
    windows: [{long: 1h, short: 5m, factor: 14.4, severity: page}]
  own: {objective: 0.5, errors: a, total: b}
  unusual: {series: x, deviates: 2, direction: above, labels: {team: a}, group_by: []}
  quiet: {expects: risk, within: 10s}
receivers:
  people: {webhook: "https://h/x", secret: "${env.S:-x}", severities: [page], resolved: false}
"""


def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_says_what_it_is() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    assert schema["$id"].startswith("urn:bedstone:")
    assert schema["title"]
    assert json.loads(json.dumps(schema)) == schema
    assert json_schema() is not json_schema()


def test_every_definition_is_described_and_titled_and_used() -> None:
    schema = json_schema()
    used = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert used == set(schema["$defs"])
    for definition in schema["$defs"].values():
        assert definition["title"]
        assert definition["description"]


def test_every_key_is_described() -> None:
    schema = json_schema()
    for name, part in [("app", schema), *schema["$defs"].items()]:
        for key, value in part.get("properties", {}).items():
            assert "description" in value, f"{name}.{key}"


def test_keys_that_are_not_built_are_absent() -> None:
    text = json.dumps(json_schema())
    for key in ("per_cell", "standby", "enclave", "cells", "secrets", "null"):
        assert f'"{key}"' not in text


@pytest.mark.parametrize(
    "text",
    [FULL, template("shop"), *[path.read_text() for path in EXAMPLES]],
    ids=["full", "template", *[path.parent.name for path in EXAMPLES]],
)
def test_good_manifests_validate(text: str) -> None:
    document = read_document(text, "m.yaml")
    assert [error.message for error in validator().iter_errors(document.data)] == []
    assert parse_manifest(text).spec.workloads


WORKLOAD = {"command": ["x"]}


@pytest.mark.parametrize(
    "change",
    [
        {"app": "Bank"},
        {"app": 5},
        {"app": None},
        {"gatewy": {}},
        {"gateway": {}},
        {"gateway": {"routes": []}},
        {"gateway": {"routes": [{"path": "/"}]}},
        {"gateway": {"routes": [{"to": "web"}], "port": 0}},
        {"gateway": {"routes": [{"to": "web"}], "port": "80"}},
        {"gateway": {"routes": [{"to": "web", "path": "x"}]}},
        {"gateway": {"routes": [{"to": "web", "strip": 1}]}},
        {"workloads": {}},
        {"workloads": []},
        {"workloads": {"Web": WORKLOAD}},
        {"workloads": {"web": {}}},
        {"workloads": {"web": {"command": "x"}}},
        {"workloads": {"web": {"command": []}}},
        {"workloads": {"web": {"command": ["x", 5]}}},
        {"workloads": {"web": {"run": "web"}}},
        {"workloads": {"web": {**WORKLOAD, "run": "web:app"}}},
        {"workloads": {"web": {**WORKLOAD, "replica": 1}}},
        {"workloads": {"web": {**WORKLOAD, "replicas": 1001}}},
        {"workloads": {"web": {**WORKLOAD, "replicas": True}}},
        {"workloads": {"web": {**WORKLOAD, "isolation": "enclave"}}},
        {"workloads": {"web": {**WORKLOAD, "image": "./root"}}},
        {"workloads": {"web": {"run": "web:app", "image": "x"}}},
        {"workloads": {"web": {**WORKLOAD, "per_cell": False}}},
        {"workloads": {"web": {**WORKLOAD, "timeout": "5"}}},
        {"workloads": {"web": {**WORKLOAD, "timeout": "0s"}}},
        {"workloads": {"web": {**WORKLOAD, "timeout": 0}}},
        {"workloads": {"web": {**WORKLOAD, "timeout": 86401}}},
        {"workloads": {"web": {**WORKLOAD, "timeout": None}}},
        {"workloads": {"web": {**WORKLOAD, "limits": {"memory": "5Mi"}}}},
        {"workloads": {"web": {**WORKLOAD, "limits": {"cpu": "1"}}}},
        {"workloads": {"web": {**WORKLOAD, "ready": "healthz"}}},
        {"workloads": {"web": {**WORKLOAD, "ready": 5}}},
        {"workloads": {"web": {**WORKLOAD, "ready": {"path": "/", "command": ["x"]}}}},
        {"workloads": {"web": {**WORKLOAD, "ready": {"tcp": False}}}},
        {"workloads": {"web": {**WORKLOAD, "env": {"A": 5}}}},
        {"databases": {"ledger": {"engine": "mysql"}}},
        {"databases": {"ledger": {"standby": "sync"}}},
        {"databases": {"ledger": None}},
        {"cells": {}},
        {"monitoring": {"traces": {"share": 1.5}}},
        {"monitoring": {"traces": {"share": "101%"}}},
        {"monitoring": {"remote_write": [{}]}},
        {"monitoring": {"otlp": [{"url": "grpc://h"}]}},
        {"monitoring": {"disabled": ["instance"]}},
        {"alerts": {"a": {}}},
        {"alerts": {"a": {"when": ""}}},
        {"alerts": {"a": {"when": "x", "expects": "web"}}},
        {"alerts": {"a": {"when": "x", "severity": "high"}}},
        {"alerts": {"a": {"when": "x", "labels": {"a-b": "c"}}}},
        {"alerts": {"A": {"when": "x"}}},
        {"alerts": {"a": {"objective": "99%"}}},
        {"alerts": {"a": {"objective": "100%", "of": "web"}}},
        {"alerts": {"a": {"objective": 1, "of": "web"}}},
        {"alerts": {"a": {"objective": "99%", "errors": "x"}}},
        {"alerts": {"a": {"objective": "99%", "of": "web", "errors": "x", "total": "y"}}},
        {"alerts": {"a": {"series": "x", "season": "1h"}}},
        {"alerts": {"a": {"series": "x", "deviates": 0}}},
        {"alerts": {"a": {"series": "x", "deviates": "0%"}}},
        {"receivers": {"r": {}}},
        {"receivers": {"r": {"webhook": "mailto:a@b"}}},
        {"receivers": {"r": {"webhook": "http://h", "severities": ["pager"]}}},
    ],
    ids=json.dumps,
)
def test_bad_manifests_fail_in_both_the_validator_and_the_parser(change: dict[str, Any]) -> None:
    data = {"app": "shop", "workloads": {"web": WORKLOAD}} | change
    assert not validator().is_valid(data)
    with pytest.raises(Exception, match=r"m\.yaml:1:"):
        parse_manifest(json.dumps(data), "m.yaml")


def test_a_place_is_described_by_the_part_of_the_schema_it_has() -> None:
    data = {"workloads": {"web": {"ready": {"path": "/"}, "live": "tcp"}}}
    ready = ("workloads", "web", "ready")
    assert describe(schema_at(data, (*ready, "path")) or {}) == "a path such as /healthz"
    assert keys_at(data, ready) == ["path", "interval", "timeout", "failures"]
    assert keys_at(data, ())[:2] == ["app", "gateway"]
    assert schema_at(data, ("workloads", "web", "nothing")) is None
    assert keys_at(data, ("workloads", "web", "nothing")) == []
