"""The pages over a pretended server: what is rare, hostile, large, broken, or not there at all."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from bedstone.testing.browser import Visit, accessible

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[3]
STUCK = "1a20fab69fa5e9f6a5f05bfae60624e1"
LIVE = re.compile("^live, .+")


@dataclass
class Pretended:
    """A pretended server, which can be cut off and started again."""

    port: int
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.e2e.console.fake.server", "--port", str(self.port)]
        self.process = subprocess.Popen([*command, *self.options], cwd=ROOT)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, "the pretended server has ended"
                assert time.monotonic() < deadline, "the pretended server does not listen"
                time.sleep(0.1)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def api(self, path: str) -> Any:
        with urlopen(self.base + path) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def pretend() -> Iterator[Callable[..., Pretended]]:
    """Starts pretended servers, one for each choice of options."""
    made: dict[tuple[str, ...], Pretended] = {}

    def start(*options: str) -> Pretended:
        if options not in made:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            made[options] = Pretended(port, options)
            made[options].start()
        return made[options]

    yield start
    for each in made.values():
        each.stop()


@pytest.fixture
def look(
    browser: Browser, pretend: Callable[..., Pretended]
) -> Iterator[Callable[..., tuple[Visit, Pretended]]]:
    """Opens a window on a pretended server; at the end nothing may have gone wrong in it."""
    made: list[tuple[Any, Visit]] = []

    def visit(*options: str) -> tuple[Visit, Pretended]:
        server = pretend(*options)
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(15_000)
        watched = Visit.watch(context.new_page(), server.base)
        made.append((context, watched))
        return watched, server

    yield visit
    for context, watched in made:
        context.close()
        watched.clean()


def after_ticks(page: Page, number: int) -> None:
    """Wait until so many more seconds have been shown."""
    clock = page.get_by_role("button", name=LIVE)
    for _ in range(number):
        before = clock.get_attribute("aria-label")
        page.wait_for_function(
            "(before) => document.querySelector('.clock')?.ariaLabel !== before", arg=before
        )


PAGES = (
    "/", "/workloads", "/workloads/bank/risk", "/workloads/bank/accounts?tab=logs",
    "/workloads/bank/accounts?tab=revisions", "/map/shop", "/map/bank?pick=risk", "/traffic/bank",
    "/traffic/bank?tab=tap", "/transactions/bank", f"/transactions/bank/{STUCK}", "/traces",
    "/explore", "/explore?q=bedstone_instance_memory_bytes", "/alerts", "/alerts?tab=history",
    "/changes",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_page_is_accessible(look: Callable[..., Any], scheme: Any) -> None:
    visit, _ = look()
    visit.page.emulate_media(color_scheme=scheme)
    for path in PAGES:
        page = visit.open(path)
        page.get_by_role("button", name=LIVE).wait_for()
        page.locator("main .panel, main svg.map").first.wait_for()
        accessible(page)


def test_a_trace_and_two_beside_each_other_are_accessible(look: Callable[..., Any]) -> None:
    visit, server = look()
    one, other, *_ = server.api("/v1/traces?limit=2")["items"]
    for path in (f"/traces/{one['trace']}", f"/traces/{one['trace']}/{other['trace']}"):
        page = visit.open(path)
        page.get_by_text("gateway").first.wait_for()
        accessible(page)


def test_of_500_workloads_those_in_sight_are_drawn(look: Callable[..., Any]) -> None:
    visit, _ = look("--workloads", "500")
    page = visit.open("/workloads")
    page.get_by_text("513 workloads").wait_for()
    table = page.get_by_role("table", name="Workloads")
    assert table.get_attribute("aria-rowcount") == "514"
    assert table.locator("tbody tr").count() < 80
    page.locator("main").evaluate("(main) => main.scrollTo(0, main.scrollHeight)")
    table.get_by_text("service-499").wait_for()
    assert table.locator("tbody tr").count() < 80


def test_a_new_second_changes_figures_and_replaces_no_row(look: Callable[..., Any]) -> None:
    visit, _ = look("--workloads", "500")
    page = visit.open("/workloads")
    page.get_by_text("513 workloads").wait_for()
    rows = "[...document.querySelectorAll('main tbody tr:not(.gap)')]"
    page.evaluate(f"window.before = {rows}; window.texts = before.map((row) => row.innerText)")
    after_ticks(page, 3)
    same, changed = page.evaluate(
        f"[{rows}.every((row, index) => row === before[index]),"
        f" {rows}.some((row, index) => row.innerText !== texts[index])]"
    )
    assert same, "a row was replaced: it would flicker, and lose what is selected in it"
    assert changed


def test_the_map_keeps_its_places_from_second_to_second(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/map/shop")
    page.locator("svg.map .node").first.wait_for()
    places = (
        "[...document.querySelectorAll('svg.map .node')].map((n) => n.getAttribute('transform'))"
    )
    before = page.evaluate(places)
    figures = page.locator("svg.map").text_content()
    after_ticks(page, 3)
    assert page.evaluate(places) == before
    assert page.locator("svg.map").text_content() != figures


def test_figures_on_the_map_stand_on_ground_that_no_line_runs_through(
    look: Callable[..., Any],
) -> None:
    visit, _ = look()
    for path in ("/map/bank", "/map/shop"):
        page = visit.open(path)
        page.locator("svg.map .edge .figures").first.wait_for()
        bare = page.evaluate(
            """[...document.querySelectorAll("svg.map .edge .figures")].filter((text) => {
              const ground = text.parentElement.querySelector(".ground");
              if (!ground) return true;
              const [inner, outer] = [text.getBBox(), ground.getBBox()];
              return inner.x < outer.x || inner.x + inner.width > outer.x + outer.width
                || inner.y < outer.y - 2 || inner.y + inner.height > outer.y + outer.height + 2;
            }).map((text) => text.textContent)"""
        )
        assert bare == []


def test_an_alert_leads_to_its_workload_and_to_what_it_measures(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/alerts")
    page.get_by_role("link", name="bedstone_transactions_stuck > 0").click()
    page.wait_for_url("**/explore?q=bedstone_transactions_stuck")
    page.go_back()
    page.locator(".alerts").get_by_role("link", name="risk", exact=True).click()
    page.wait_for_url("**/workloads/bank/risk")


def test_hostile_text_is_text(look: Callable[..., Any]) -> None:
    visit, server = look()
    visit.page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    page = visit.open("/workloads/bank/accounts?tab=logs&text=onerror")
    lines = server.api("/v1/apps/bank/lines?workload=accounts&limit=300")["items"]
    if not any("onerror" in line["text"] for line in lines):  # chance decides where it stands
        page.get_by_text("No line is like that").wait_for()
        return
    page.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()
    assert page.locator("main img").count() == 0


def test_a_link_with_hostile_names_runs_nothing(look: Callable[..., Any]) -> None:
    visit, _ = look()
    visit.page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    hostile = "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"
    page = visit.open(f"/{hostile}?q={hostile}")
    page.get_by_text("There is no page").wait_for()
    page.goto(f"{visit.base}/workloads/{hostile}/{hostile}")
    page.get_by_role("alert").wait_for()
    assert page.locator("main img").count() == 0
    visit.forgive("404")


def test_a_reader_sees_no_button_that_changes_anything(look: Callable[..., Any]) -> None:
    visit, _ = look("--role", "reader")
    for path, shown in (
        ("/workloads/bank/accounts?tab=revisions", "7c19ab02"),
        (f"/transactions/bank/{STUCK}", "Branch 1 waits"),
        ("/alerts", "risk-errors"),
        ("/changes", "apply"),
        ("/traffic/bank", "Routes"),
    ):
        page = visit.open(path)
        page.get_by_text(shown).first.wait_for()
        buttons = " ".join(page.locator("main button").all_inner_texts())
        for word in ("Restart", "Scale", "Roll back", "Retry", "repaired", "Silence", "Undo"):
            assert word not in buttons, (path, buttons)
        assert page.get_by_text("Live tap").count() == 0


def test_an_action_asks_for_a_reason_and_a_refusal_stays_in_its_own_words(
    look: Callable[..., Any],
) -> None:
    visit, server = look()
    page = visit.open(f"/transactions/bank/{STUCK}")
    page.get_by_role("button", name="I have repaired it").click()
    confirm = page.get_by_role("button", name="It is repaired")
    assert confirm.is_disabled(), "no reason is given yet"
    page.get_by_label("Why").fill("row set by hand, case 4711")
    confirm.click()
    page.get_by_text("branch 1 is recorded as repaired").wait_for()
    last = server.api("/v1/changes")["items"][0]
    assert (last["action"], last["detail"]) == ("repair", "row set by hand, case 4711")

    page = visit.open("/workloads/bank/accounts")
    page.get_by_role("button", name="Scale").click()
    page.get_by_role("spinbutton").fill("25")
    page.get_by_role("button", name="Scale to 25").click()
    refusal = page.get_by_role("dialog").get_by_role("alert")
    assert refusal.inner_text().split("\n\n") == [
        "got 25 replicas, expected at most 20",
        "add a node first",
    ]
    visit.forgive("422")


def test_a_stuck_transaction_shows_which_value_is_neither(look: Callable[..., Any]) -> None:
    visit, server = look()
    page = visit.open(f"/transactions/bank/{STUCK}")
    stuck = server.api(f"/v1/apps/bank/transactions/{STUCK}")["branches"][0]["stuck"]
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="stock"))
    assert row.inner_text().split() == [
        "stock",
        *(str(stuck[image]["stock"]) for image in ("before", "after", "now")),
        "neither",
    ]
    assert page.get_by_text(stuck["repair"][0]).is_visible()


@pytest.mark.parametrize(
    ("path", "taught"),
    [("/", "bedstone up"), ("/workloads", "bedstone up"), ("/map", "bedstone init"),
     ("/traces", "curl"), ("/alerts", "bedstone alerts"), ("/changes", "bedstone up"),
     ("/transactions", "bedstone up"), ("/explore", "rate(bedstone_requests_total")],
)  # fmt: skip
def test_an_empty_page_says_what_fills_it(look: Callable[..., Any], path: str, taught: str) -> None:
    visit, _ = look("--empty")
    page = visit.open(path)
    page.locator("main").get_by_text(taught).first.wait_for()


def test_a_cut_stream_says_so_and_recovers_by_itself(look: Callable[..., Any]) -> None:
    visit, server = look("--well")
    page = visit.open("/")
    page.get_by_role("button", name=LIVE).wait_for()
    page.get_by_text("All is well").wait_for()
    server.stop()
    page.get_by_text("reconnecting").wait_for()
    assert page.get_by_text("All is well").is_visible(), "what was known stays"
    server.start()
    page.get_by_role("button", name=LIVE).wait_for(timeout=20_000)
    after_ticks(page, 2)
    visit.forgive("ERR_")


def test_a_hidden_page_asks_for_nothing(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/")
    page.get_by_role("button", name=LIVE).wait_for()
    hide = (
        "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(hide.format("true"))
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate(hide.format("false"))
    after_ticks(page, 1)
    assert any("/v1/ticks" in url for url in asked)


def test_the_address_holds_the_state_and_history_walks_it(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/workloads")
    page.get_by_role("button", name="Rate").click()
    assert page.url.endswith("?sort=-rate")
    page.get_by_label("Filter by name").fill("pay")
    page.wait_for_url("**search=pay*")
    page.get_by_text("1 workload").wait_for()
    page.get_by_role("link", name="payments").click()
    page.wait_for_url("**/workloads/shop/payments")
    page.go_back()
    assert page.get_by_label("Filter by name").input_value() == "pay"
    page.get_by_text("1 workload").wait_for()
    same = visit.page.context.new_page()
    same.goto(page.url)
    same.get_by_text("1 workload").wait_for()
    assert same.get_by_role("columnheader", name="Rate").get_attribute("aria-sort") == "descending"


def test_the_keyboard_goes_everywhere(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/")
    page.get_by_role("button", name=LIVE).wait_for()
    page.keyboard.press("/")
    page.get_by_role("combobox").fill("accounts")
    page.get_by_role("option", name="bank/accounts").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/workloads/bank/accounts")
    page.keyboard.press("g")
    page.keyboard.press("w")
    page.wait_for_url("**/workloads")
    page.get_by_role("table", name="Workloads").wait_for()
    for key in ("j", "j", "k", "j", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url("**/workloads/bank/risk")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("Escape")
    trace = "0af7651916cd43dd8448eb211c80319c"
    page.keyboard.press("Control+k")
    page.get_by_role("combobox").fill(trace)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/traces/{trace}")
    page.get_by_text(f"there is no trace {trace}").wait_for()
    visit.forgive("404")


def test_a_chosen_theme_is_remembered(look: Callable[..., Any]) -> None:
    visit, _ = look()
    visit.page.emulate_media(color_scheme="light")
    page = visit.open("/")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_query_that_is_refused_says_why_beside_those_that_are_not(
    look: Callable[..., Any],
) -> None:
    visit, _ = look()
    page = visit.open("/explore?q=rate(x&q=bedstone_instance_memory_bytes")
    page.get_by_text("parse error: unclosed left parenthesis").wait_for()
    page.get_by_role("table", name="Series").get_by_text("web").first.wait_for()
    visit.forgive("400")


def test_completion_knows_metrics_labels_and_values(look: Callable[..., Any]) -> None:
    visit, _ = look()
    page = visit.open("/explore")
    field = page.get_by_label("Query A")
    field.press_sequentially("rate(bedstone_requests_t")
    page.get_by_role("option", name="bedstone_requests_total").wait_for()
    field.press("Tab")
    field.press_sequentially("{workl")
    page.get_by_role("option", name="workload").first.wait_for()
    field.press("Tab")
    field.press_sequentially('="acc')
    page.get_by_role("option", name="accounts").wait_for()
    field.press("Tab")
    field.press_sequentially('"}[5s])')
    field.press("Enter")
    page.wait_for_url("**/explore?q=*")
    assert field.input_value() == 'rate(bedstone_requests_total{workload="accounts"}[5s])'
