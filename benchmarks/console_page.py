"""How long a console page's own thread is busy with each second, over many workloads.

    python benchmarks/console_page.py [--workloads 500] [--seconds 20]

A pretended server gives each second's figures; headless Chromium shows them, and tells how long its
main thread worked (Performance.getMetrics: TaskDuration). The baseline is the same page with no
workload but the pretended thirteen. Prints JSON, in milliseconds a second.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.testing.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]
PAGES = {"workloads": "/workloads", "map": "/map/{app}"}
OTHERS = 13


def busy(browser: Browser, path: str, workloads: int, seconds: int) -> list[float]:
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
                page.goto(
                    f"http://127.0.0.1:{port}{path.format(app='many' if workloads else 'shop')}"
                )
                break
            except Exception:  # noqa: BLE001 - it does not listen yet
                time.sleep(0.2)
        page.locator("main tbody tr, main .node").first.wait_for()
        time.sleep(3)
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
    parser.add_argument("--workloads", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    given = parser.parse_args()
    rows = {}
    with chromium() as browser:
        for page, path in PAGES.items():
            for workloads in (0, given.workloads):
                times = busy(browser, path, workloads, given.seconds)
                rows[f"{page}, {workloads + OTHERS} workloads"] = {
                    "median": round(statistics.median(times) * 1000),
                    "most": round(max(times) * 1000),
                }
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
