"""From an event to the screen: seconds until a request is seen on the console's overview.

    python benchmarks/console_screen.py [--events 60]

The bank runs, quiet, with the console open in a headless Chromium. At a random moment within a
second one request is sent; the time runs until the overview's line of the last minute shows it.
Besides: how long the page's own thread is busy with a second, over a pretended server with as many
workloads as `--workloads` says, on the list of workloads.

The baseline is the second itself: an event in it can be known at its end, half a second later on
average. Prints JSON, in seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from bedstone.testing.browser import chromium
from bedstone.testing.domain import Domain

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]
QUIET = "() => document.querySelector('.sparkline')?.ariaLabel.includes('now 0/s')"
SEEN = "() => /now (?!0\\/s)/.test(document.querySelector('.sparkline')?.ariaLabel)"
PATIENCE = 15_000


def staleness(browser: Browser, domain: Domain, events: int) -> list[float]:
    link = json.loads(domain.ok("open", "-o", "json"))["url"]
    page = browser.new_page()
    page.goto(link)
    page.locator(".sparkline").wait_for()
    found = []
    with httpx.Client(base_url=domain.url, trust_env=False) as http:
        for _ in range(events):
            page.wait_for_function(QUIET, timeout=PATIENCE)
            time.sleep(random.random())
            sent = time.time()
            http.get("/healthz")
            page.wait_for_function(SEEN, timeout=PATIENCE, polling=20)
            found.append(time.time() - sent)
    page.close()
    return found


def busy(browser: Browser, workloads: int, seconds: int) -> list[float]:
    """Seconds that the page's thread is busy in each second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.e2e.console.fake.server", "--port", str(port)]
    server = subprocess.Popen([*command, "--workloads", str(workloads)], cwd=ROOT)
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        for _ in range(50):
            try:
                page.goto(f"http://127.0.0.1:{port}/workloads")
                break
            except Exception:  # noqa: BLE001 - it does not listen yet
                time.sleep(0.2)
        page.get_by_text(f"{workloads + 13} workloads").wait_for()
        return _tasks(page, seconds)
    finally:
        server.kill()
        server.wait()


def _tasks(page: Page, seconds: int) -> list[float]:
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def spent() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    found = []
    for _ in range(seconds):
        before = spent()
        time.sleep(1)
        found.append(spent() - before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--workloads", type=int, default=500)
    given = parser.parse_args()
    domain = Domain.make(ROOT / "examples/bank")
    with chromium() as browser:
        try:
            domain.up()
            times = sorted(staleness(browser, domain, given.events))
        finally:
            domain.down()
            domain.discard()
        page = busy(browser, given.workloads, 20)
    print(
        json.dumps(
            {
                "events": len(times),
                "median": round(statistics.median(times), 3),
                "p99": round(times[min(len(times) - 1, int(len(times) * 0.99))], 3),
                "workloads": given.workloads,
                "busy_median": round(statistics.median(page), 3),
                "busy_most": round(max(page), 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
