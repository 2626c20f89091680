"""Every page over the running bank: what is shown equals what the API said.

The clock of the console is stopped, so that what is shown stays; the answers from which it was made
are those that the browser got last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from bedstone.testing.bank import Bank
from bedstone.testing.browser import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Response

pytestmark = pytest.mark.timeout(150)

UNITS = {
    "/s": 1.0, "k/s": 1e3, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "%": 0.01, "B": 1.0, "KiB": 1024.0,
    "MiB": 1024.0**2, "GiB": 1024.0**3, "cores": 1.0, "core": 1.0, "": 1.0,
}  # fmt: skip
_FIGURE = re.compile(r"^<?([\d.\u2009]+)[\s\u202f]*([^\d\s]*)$")


def figure(text: str) -> float | None:
    """The value of a figure with its unit; None for one that was not measured."""
    text = text.strip()
    if text == "\u2013":
        return None
    found = _FIGURE.match(text)
    assert found is not None, text
    return float(found[1].replace("\u2009", "")) * UNITS[found[2]]


def same(text: str, value: float | None) -> None:
    """A figure shows a value, to the digits that it has."""
    shown = figure(text)
    if value is None or shown is None:
        assert shown is value, (text, value)
    else:
        assert abs(shown - value) <= max(0.006 * abs(value), _last_digit(text)), (text, value)


def _last_digit(text: str) -> float:
    """Half of what the last digit of a figure stands for."""
    found = _FIGURE.match(text)
    assert found is not None, text
    decimals = len(found[1].partition(".")[2])
    return 0.51 * UNITS[found[2]] * 0.1**decimals


class Answers:
    """What the API has answered to a page, by path."""

    def __init__(self, page: Page) -> None:
        self._last: dict[str, Any] = {}
        page.on("response", self._keep)

    def _keep(self, response: Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.ok and kind.startswith("application/json"):
            self._last[urlsplit(response.url).path] = response

    def __getitem__(self, path: str) -> Any:
        return json.loads(self._last[path].text())


@pytest.fixture
def stopped(visit: Visit) -> Callable[[str, str], tuple[Page, Answers]]:
    """Opens a page, lets it live until a text is there, and stops its clock."""

    def opened(path: str, text: str) -> tuple[Page, Answers]:
        answers = Answers(visit.page)
        page = visit.open(path)
        page.locator("main").get_by_text(text).first.wait_for()
        live = page.get_by_role("button", name=re.compile("^live, .+"))
        before = live.get_attribute("aria-label")
        page.wait_for_function(
            "(before) => document.querySelector('.clock')?.ariaLabel !== before", arg=before
        )
        live.click()
        page.get_by_role("button", name=re.compile("^paused")).wait_for()
        page.wait_for_load_state("networkidle")
        return page, answers

    return opened


def cells(row: Locator) -> list[str]:
    return row.get_by_role("cell").all_inner_texts()


def row_of(page: Page, table: str, name: str) -> Locator:
    rows = page.get_by_role("table", name=table).get_by_role("row")
    return rows.filter(has=page.get_by_text(name, exact=True)).first


def test_overview(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/", "bank")
    overview = answers["/v1/overview"]
    (app,) = overview["apps"]
    _, ready, _, rate, errors, p99, cpu, memory, gateway = cells(row_of(page, "Apps", "bank"))
    assert ready == f"{app['ready']}/{app['wanted']}"
    signals = app["signals"]
    for text, name in ((rate, "rate"), (errors, "errors"), (p99, "p99")):
        same(text, signals[name])
    same(cpu, signals["cpu"])
    same(memory, signals["memory"])
    assert gateway in app["gateway"]
    for node in overview["nodes"]:
        assert cells(row_of(page, "Nodes", node["node"]))[1] == str(node["instances"])
    assert page.get_by_role("region", name="Changes").get_by_role("listitem").count() == min(
        12, len(overview["changes"])
    )


def test_workloads(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/workloads", "accounts")
    for line in answers["/v1/workloads"]["items"]:
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=line["name"]))
        _, _, ready, restarts, rate, errors, p99, cpu, memory = cells(row.first)
        assert (ready, restarts) == (f"{line['ready']}/{line['wanted']}", str(line["restarts"]))
        signals = line["signals"]
        for text, name in (
            (rate, "rate"), (errors, "errors"), (p99, "p99"), (cpu, "cpu"), (memory, "memory"),
        ):  # fmt: skip
            same(text, signals[name])


def test_a_workload(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/workloads/bank/accounts", "Ready instances")
    line = answers["/v1/apps/bank/workloads/accounts"]
    summary = page.get_by_role("region", name="Summary")
    assert f"{line['ready']} of {line['wanted']} instances ready" in summary.inner_text()
    names = page.get_by_role("table", name="Instances").locator("tbody .mono").all_inner_texts()
    assert names == [instance["name"] for instance in line["instances"]]
    shown = dict[str, str]()
    for each in summary.locator(".figure").all():
        value, name = each.inner_text().split("\n")
        shown[name] = value
    for name in ("rate", "errors", "p50", "p99"):
        same(shown[name], line["signals"][name])
    charts = page.locator("[role=img][aria-label^='Requests a second']")
    assert "no data" not in (charts.first.get_attribute("aria-label") or "no data")
    page.get_by_role("link", name="Revisions").click()
    revisions = page.get_by_role("region", name="Revisions").inner_text()
    for revision in line["revisions"]:
        assert revision["name"] in revisions


def test_logs(stopped: Callable[..., tuple[Page, Answers]], bank: Bank) -> None:
    page, _ = stopped("/workloads/bank/accounts?tab=logs", "applied")
    shown = page.get_by_role("log").inner_text()
    lines = bank.api("/v1/apps/bank/lines?workload=accounts")["items"]
    assert lines
    for line in lines:
        assert line["text"] in shown


def test_map(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/map/bank", "the last 10 s")
    graph = answers["/v1/apps/bank/graph"]
    labels = [
        label or ""
        for label in page.locator("svg.map [role=button]").evaluate_all(
            "(all) => all.map((each) => each.ariaLabel)"
        )
    ]
    for node in graph["nodes"]:
        said = next(x for x in labels if x.startswith(f"{node['kind']} {node['name']}, "))
        assert said.split(", ")[1].split(":")[0] == node["health"]
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    for edge in graph["edges"]:
        start = f"{names[edge['source']]} to {names[edge['target']]}: "
        said = next(x for x in labels if x.startswith(start)).removeprefix(start)
        rate = edge["signals"]["rate"]
        if edge["connections"] is None and rate:
            same(said.split(", ")[0], rate)
            same(said.split("p99 ")[1].split(", ")[0], edge["signals"]["p99"])


def test_the_map_of_a_past_minute(visit: Visit, bank: Bank) -> None:
    second = bank.api("/v1/overview")["second"] - 5
    page = visit.open(f"/map/bank?at={second}")
    page.get_by_text("the minute that ended").wait_for()
    graph = bank.api(f"/v1/apps/bank/graph?at={second}&window=60")
    page.locator("svg.map .node").first.wait_for()
    assert page.locator("svg.map .node").count() == len(graph["nodes"])
    page.get_by_role("button", name="Live", exact=True).click()
    page.get_by_text("the last 10 s").wait_for()


def test_traffic(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/traffic/bank", "Policies")
    traffic = answers["/v1/apps/bank/traffic"]
    (route,) = traffic["routes"]
    shown = cells(page.get_by_role("table", name="Routes").get_by_role("row").nth(1))
    assert shown[1] == route["to"]
    same(shown[4], route["signals"]["rate"])
    for policy in traffic["policies"]:
        _, allowed, denied = cells(row_of(page, "Policies", policy["workload"]))
        assert allowed.split(", ") == policy["allowed"] or not policy["allowed"]
        same(denied, policy["denied"])


def test_the_tap_shows_requests_as_they_happen(visit: Visit) -> None:
    page = visit.open("/traffic/bank?tab=tap&workload=web")
    requests = page.get_by_role("table", name="Requests")
    requests.get_by_text("/transfers").first.wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("paused").wait_for()
    rows = requests.inner_text()
    page.wait_for_timeout(700)
    assert requests.inner_text() == rows


def test_transactions(stopped: Callable[..., tuple[Page, Answers]], bank: Bank) -> None:
    page, _ = stopped("/transactions/bank", "transfer")
    first = page.get_by_role("table", name="Transactions").locator("tbody tr").first
    xid = first.locator("code").inner_text()
    first.get_by_text("transfer").click()
    page.wait_for_url(f"**/transactions/bank/{xid}")
    page.get_by_role("region", name="History").wait_for()
    detail = bank.api(f"/v1/apps/bank/transactions/{xid}")
    assert xid in page.get_by_role("region", name="Summary").inner_text()
    branches = page.get_by_role("region", name="Branches").locator("tbody tr")
    assert branches.count() == len(detail["branches"])
    for index, branch in enumerate(detail["branches"]):
        text = branches.nth(index).inner_text()
        assert branch["mode"] in text
        assert branch["resource"] in text


def test_metrics(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    query = "sum by (workload) (rate(bedstone_requests_total[5s]))"
    page, answers = stopped(f"/explore?q={query}&range=300", "{workload=")
    result = answers["/prometheus/api/v1/query_range"]["data"]["result"]
    assert {series["metric"]["workload"] for series in result} == {"web", "accounts", "risk"}
    table = page.get_by_role("table", name="Series")
    for series in result:
        name = f'{{workload="{series["metric"]["workload"]}"}}'
        last = cells(table.get_by_role("row").filter(has_text=name))[1]
        same(last, float(series["values"][-1][1]))


def test_traces(visit: Visit, bank: Bank) -> None:
    page = visit.open("/traces?service=accounts")
    first = page.get_by_role("table", name="Traces").locator("tbody tr").first
    first.wait_for(timeout=30_000)
    first.get_by_role("link").first.click()
    page.wait_for_url(re.compile("/traces/[0-9a-f]{32}$"))
    trace = bank.api(f"/v1{urlsplit(page.url).path}")
    rows = page.get_by_role("list", name="Spans").get_by_role("listitem")
    rows.first.wait_for()
    assert rows.count() >= len(trace["spans"]), "a young trace may still get spans"
    services = {span["service"] for span in trace["spans"]}
    shown = set(page.locator(".span-row .name b").all_inner_texts())
    assert services <= shown


def test_alerts(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/alerts", "rule")
    for alert in answers["/v1/alerts"]["items"]:
        assert alert["rule"] in page.locator("main").inner_text()


def test_changes(stopped: Callable[..., tuple[Page, Answers]]) -> None:
    page, answers = stopped("/changes", "apply")
    entries = page.locator(".change-list > ol > li")
    changes = answers["/v1/changes"]["items"]
    assert entries.count() == len(changes)
    for index, change in enumerate(changes):
        text = entries.nth(index).inner_text()
        for part in (change["who"], change["action"], change["target"]):
            assert part in text


def test_a_restart_from_the_page_is_audited_as_who_signed_in(visit: Visit, bank: Bank) -> None:
    page = visit.open("/workloads/bank/risk")
    page.get_by_role("button", name="Restart", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Restart").click()
    page.get_by_text("risk is being restarted").wait_for()
    newest = bank.api("/v1/changes")["items"][0]
    assert newest["action"] == "restart"
    assert newest["who"].startswith("console:")
    page.goto(f"{visit.base}/changes")
    page.locator(".change-list").get_by_text("restart").first.wait_for()
