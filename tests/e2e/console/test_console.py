"""The console in a real browser, over the running bank."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from bedstone.testing.bank import Bank
from bedstone.testing.browser import Visit, accessible

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(150)


def test_a_link_signs_in_once(browser: Browser, bank: Bank) -> None:
    link = bank.link("--role", "reader")
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.wait_for_url(lambda url: urlsplit(url).path == "/")
    assert "code" not in page.url
    assert page.evaluate("document.cookie") == "", "no script can read the cookie"
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert cookie["domain"] == "bedstone.localhost", "it is sent to this name only"
    context.close()
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.get_by_text("used already").wait_for()
    context.close()


def test_the_overview_shows_what_the_api_says(visit: Visit, bank: Bank) -> None:
    page = visit.open("/")
    apps = page.get_by_role("region", name="Apps")
    apps.get_by_text("bank").first.wait_for()
    overview = bank.api("/v1/overview")
    (app,) = overview["apps"]
    text = apps.inner_text()
    assert f"{app['ready']}/{app['wanted']}" in re.sub(r"\s", "", text)
    assert str(app["generation"]) in text
    nodes = page.get_by_role("region", name="Nodes").inner_text()
    for node in overview["nodes"]:
        assert node["node"] in nodes


PAGES = ("/", "/workloads", "/workloads/bank/web", "/map/bank")


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible_in_both_themes(visit: Visit, path: str, scheme: str) -> None:
    visit.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page = visit.open(path)
    page.get_by_text("bank").first.wait_for()
    accessible(page)


def test_a_cut_connection_recovers_by_itself(visit: Visit, bank: Bank) -> None:
    """The server is killed: the page says so, and goes on when it is back, still signed in."""
    page = visit.open("/")
    live = page.get_by_role("button", name=re.compile("^live, .+"))
    live.wait_for()
    bank.kill("server")
    page.get_by_text("reconnecting").wait_for()
    live.wait_for(timeout=30_000)
    page.get_by_role("region", name="Apps").get_by_text("bank").first.wait_for()
    last = bank.api("/v1/overview")["second"]
    page.wait_for_function(
        "(second) => fetch('/v1/overview').then((a) => a.json()).then((o) => o.second > second)",
        arg=last,
    )
    for text in ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_EMPTY", "ERR_CONNECTION"):
        visit.forgive(text)


def test_a_session_that_is_revoked_is_over_at_once(browser: Browser, bank: Bank) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(bank.link("--role", "reader"))
    page.get_by_role("button", name=re.compile("^live, .+")).wait_for()
    sessions = json.loads(bank.domain.ok("open", "--list", "-o", "json"))
    mine = next(session for session in sessions if session["role"] == "reader")
    bank.domain.ok("open", "--revoke", mine["id"])
    page.get_by_text("bedstone open").wait_for()
    context.close()


def test_markup_that_somebody_wrote_stays_text(visit: Visit, bank: Bank) -> None:
    evil = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
    request = {"labels": {"rule": "none"}, "seconds": 600, "why": evil}
    silence = bank.send("POST", "/v1/silences", request)
    try:
        for path in ("/alerts?tab=silences", "/changes"):
            page = visit.open(path)
            page.get_by_text("window.owned=1").first.wait_for()
            assert page.locator("img[src=x]").count() == 0, path
            assert page.evaluate("window.owned") is None
    finally:
        bank.send("DELETE", f"/v1/silences/{silence['id']}")
