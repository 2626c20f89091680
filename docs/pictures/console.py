# ruff: noqa: INP001, S311 - scripts, not a package; chance of a picture
"""Take `console.png`: the console's map over the bank, run for real, while customers move money.

    .venv/bin/python docs/pictures/console.py

Needs Chromium. Nothing in the picture is made up; how fast things are depends on the machine.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from threading import Event, Thread

import httpx

from bedstone.testing.browser import chromium
from bedstone.testing.domain import Domain

HERE = Path(__file__).parent
BANK = HERE.parents[1] / "examples" / "bank"
SECONDS = 90
SIZE = (1280, 640)


def customers(url: str, ended: Event) -> None:
    """Open accounts, and move money between them; some ask for more than they may."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        opened = [
            http.post("/accounts", json={"owner": "ann", "balance": 10**6, "kind": kind}).json()
            for kind in ("current", "savings", "current")
        ]
        while not ended.is_set():
            payer, payee = random.sample(opened, 2)
            amount = random.choice((10, 25, 100, 10**9))
            order = {"from": payer["id"], "to": payee["id"], "amount": amount}
            http.post("/transfers", json=order)
            http.get(f"/accounts/{payer['id']}")


def main() -> None:
    """Run, look, stop."""
    domain = Domain.make(BANK)
    ended = Event()
    load: Thread | None = None
    try:
        domain.up()
        load = Thread(target=customers, args=(domain.url, ended))
        load.start()
        time.sleep(SECONDS)
        with chromium() as browser:
            page = browser.new_page(color_scheme="dark")
            page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
            page.goto(json.loads(domain.ok("open", "-o", "json"))["url"])
            page.get_by_role("link", name="Map").click()
            page.locator(".figures").first.wait_for()
            page.wait_for_timeout(2500)
            page.screenshot(path=HERE / "console.png")
    finally:
        ended.set()
        if load is not None:
            load.join()
        domain.down()
        domain.discard()


if __name__ == "__main__":
    main()
