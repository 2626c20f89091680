"""A browser for tests of the console: Chromium, driven by Playwright, watched for what goes wrong.

`Visit` is a page that takes down whatever goes wrong in it; `accessible` asks axe. Playwright is
imported where it is used: it is needed by these tests alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bedstone.console.app import NAMES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = (
    "--no-sandbox",  # root, as in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
)
_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective}, ${event.blockedURI} ${event.sample}`);
});
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window, that asks nobody for anything by itself."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page, and what went wrong in it."""

    page: Page
    base: str
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    @classmethod
    def watch(cls, page: Page, base: str) -> Visit:
        """Take down every error, violation of the policy, and host that is asked."""
        visit = cls(page, base)
        page.add_init_script(_VIOLATIONS)
        page.on("console", visit._said)
        page.on("pageerror", lambda error: visit.problems.append(f"uncaught: {error}"))
        page.on("request", visit._asked)
        return visit

    def open(self, path: str) -> Page:
        """Go to a page of the console."""
        self.page.goto(f"{self.base}{path}")
        return self.page

    def forgive(self, text: str) -> None:
        """Forget the problems in which a text stands: those that the test itself has made."""
        self.problems = [problem for problem in self.problems if text not in problem]

    def clean(self) -> None:
        """Nothing went wrong, and nobody else was asked for anything."""
        assert self.problems == []
        assert {host.rpartition(":")[0] for host in self.hosts} <= NAMES, self.hosts

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            where = urlsplit(message.location["url"]).path
            self.problems.append(f"{message.type}: {message.text} ({where})")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"}:
            self.hosts.add(parts.netloc)


def accessible(page: Page) -> None:
    """No serious finding of axe, whose script is put in from outside the page's policy."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in {"serious", "critical"}]
    assert serious == [], json.dumps(
        [{each["id"]: [node["html"] for node in each["nodes"]]} for each in serious], indent=1
    )
