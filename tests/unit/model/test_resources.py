"""Resources survive the store."""

from __future__ import annotations

import pytest

from bedstone.model.manifest import parse_manifest
from bedstone.model.resources import KINDS, App, Revision

TEXT = """\
app: bank
gateway: {routes: [{to: web, timeout: 5s}]}
workloads:
  web:
    command: [x]
    uses: [ledger]
    ready: tcp
    live: {command: [a, b]}
    limits: {memory: 1MiB}
  other: {run: "a:b", ready: /x, live: {path: /y, interval: 2s}}
databases:
  ledger: {}
"""


def test_a_manifest_survives_the_store_exactly() -> None:
    app = App(name="bank", spec=parse_manifest(TEXT).spec, sources={"web": "1"})
    assert App.decode(app.encode()) == app
    assert app.key == "apps/bank"


@pytest.mark.parametrize("name", ["web", "other"])
def test_a_revision_survives_the_store_exactly(name: str) -> None:
    spec = parse_manifest(TEXT).spec.workloads[name]
    revision = Revision(app="bank", workload=name, name="1234abcd", spec=spec)
    assert Revision.decode(revision.encode()) == revision
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec
    assert type(spec).model_validate(spec.model_dump()) == spec


def test_each_kind_has_its_own_name() -> None:
    assert all(kind.kind == name for name, kind in KINDS.items())
    assert len(KINDS) == len(set(KINDS.values()))
