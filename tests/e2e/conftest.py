"""Installations for end-to-end tests, each taken down at the end of its module.

One that went on running would cost all later tests: it looks at itself every second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedstone.testing.domain import Domain, Load
from bedstone.testing.echo import MANIFEST, nothing_left, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_load() -> Callable[..., Load]:
    """Makes a steady load."""
    return Load


@pytest.fixture(scope="module")
def make_domain() -> Iterator[Callable[..., Domain]]:
    """Makes domains from an example or a manifest; nothing of them may be left at the end."""
    made: list[Domain] = []

    def make(source: str | None = None, manifest: str = "") -> Domain:
        domain = Domain.make(ROOT / source if source else None, manifest)
        made.append(domain)
        return domain

    yield make
    failures = []
    for domain in made:
        try:
            domain.down()
        except AssertionError as error:
            failures.append(str(error))
        domain.discard()
    assert not failures, failures


@pytest.fixture
def domain(make_domain: Callable[..., Domain]) -> Iterator[Domain]:
    """A small app that is not running; afterwards nothing of it may be left."""
    made = make_domain(manifest="app: echo")
    write(made, MANIFEST)
    yield made
    if made.directory.exists():
        made.down()
        nothing_left(made)
