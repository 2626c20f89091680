"""How old what a person sees is: seconds from a request to its second painted in a browser.

An app of one workload runs by the real command; Chromium has the console's overview open. At
random moments one request is sent; the time is taken until the frame after the page has the answer
of which the line "Last 60 s" shows that request. The baseline is the end of the second in which the
request was sent: nobody could show it earlier.

    python benchmarks/screen.py [--events 60]

Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from typing import Any

import httpx

from bedstone.testing.browser import chromium
from bedstone.testing.domain import Domain

MANIFEST = """
app: echo
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web: {run: "web:app"}
"""
WEB = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""
_APART = (4.0, 5.0)
_LATE = 3
"""Seconds between two requests, and after which one would be taken for the next."""
_WATCH = """
window.painted = [];
const asking = window.fetch;
window.fetch = async (...asked) => {
  const answer = await asking(...asked);
  if (String(asked[0]?.url ?? asked[0]).includes("/v1/overview")) {
    answer.clone().json().then((overview) => {
      const { second, apps: [app] } = overview;
      requestAnimationFrame(() => requestAnimationFrame(() => {
        window.painted.push([Date.now() / 1000, second, app ? app.rates : []]);
      }));
    });
  }
  return answer;
};
"""


def seen(painted: list[list[Any]], sent: float) -> float | None:
    """When the second in which a request was sent was first painted with it."""
    wanted = int(sent)
    for at, second, rates in painted:
        place = len(rates) - 1 - (second - wanted)
        # Where a second was not complete, its counts come with a later one.
        for index in range(place, place + _LATE):
            if 0 <= index < len(rates) and (rates[index] or 0) > 0 and at > sent:
                return float(at)
    return None


def main(arguments: argparse.Namespace) -> None:
    """Run, ask, print."""
    domain = Domain.make(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(WEB)
    events: list[float] = []
    try:
        domain.up()
        with chromium() as browser, httpx.Client(trust_env=False) as http:
            page = browser.new_page()
            page.add_init_script(_WATCH)
            page.goto(json.loads(domain.ok("open", "-o", "json"))["url"])
            page.get_by_role("region", name="Apps").get_by_text("echo").first.wait_for()
            time.sleep(3)
            for _ in range(arguments.events):
                time.sleep(random.uniform(*_APART))
                events.append(time.time())
                http.get(domain.url)
            time.sleep(4)
            painted = page.evaluate("window.painted")
    finally:
        domain.down()
        domain.discard()
    ages, beyond = [], []
    for sent in events:
        at = seen(painted, sent)
        if at is not None:
            ages.append(at - sent)
            beyond.append(at - (int(sent) + 1))
    result = {
        "events": len(events),
        "seen": len(ages),
        "seconds": _spread(ages),
        "seconds_after_the_second_ended": _spread(beyond),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _spread(values: list[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    with contextlib.suppress(statistics.StatisticsError):
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        found = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "most": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=60)
    main(parser.parse_args())
