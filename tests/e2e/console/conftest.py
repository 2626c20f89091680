"""The bank, running, and a browser that is signed in to its console.

All tests of a module share one bank and one browser. A test that breaks something of the bank makes
it whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from bedstone.testing.bank import Bank
from bedstone.testing.browser import CHROMIUM, Visit, chromium
from bedstone.testing.domain import Domain

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("needs a browser: apt-get install chromium")
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def bank(make_domain: Callable[..., Domain]) -> Iterator[Bank]:
    domain = make_domain("examples/bank")
    domain.up()
    running = Bank(domain)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def signed_in(browser: Browser, bank: Bank) -> Iterator[dict[str, Any]]:
    """The cookies of an operator who has used a link, and where the console is."""
    link = bank.link()
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.wait_for_url(lambda url: urlsplit(url).path == "/")
    parts = urlsplit(link)
    yield {"state": context.storage_state(), "base": f"{parts.scheme}://{parts.netloc}"}
    context.close()


@pytest.fixture
def visit(browser: Browser, signed_in: dict[str, Any]) -> Iterator[Visit]:
    """A fresh window of that operator; at its end nothing may have gone wrong in it."""
    context = browser.new_context(
        storage_state=signed_in["state"], viewport={"width": 1280, "height": 800}
    )
    context.set_default_timeout(15_000)
    watched = Visit.watch(context.new_page(), signed_in["base"])
    yield watched
    context.close()
    watched.clean()
