"""The bank of the examples, running, with a customer who keeps moving money: for tests of pages."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from bedstone.processes.state import run_directory
from bedstone.testing.domain import Domain


class Bank:
    """The bank, with somebody who keeps transferring money."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        sockets = httpx.HTTPTransport(uds=str(run_directory(domain.state) / "api.sock"))
        self._api = httpx.Client(transport=sockets, base_url="http://api", timeout=30)
        self._stop = threading.Event()
        self._customer = threading.Thread(target=self._trade, daemon=True)

    def api(self, path: str) -> Any:
        """What the API answers to the local operator."""
        answer = self._api.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return answer.json()

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Change something, as the local operator."""
        answer = self._api.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer.json()

    def link(self, *options: str) -> str:
        """A one-time link."""
        shown = self.domain.ok("open", "-o", "json", *options)
        url: str = json.loads(shown)["url"]
        return url

    def kill(self, name: str) -> None:
        """Kill a process of the run; a browser's event loop may run in the caller's thread."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self.domain.kill, name).result()

    def start(self) -> None:
        """Let the customer begin, and wait until the overview has seen it."""
        self._customer.start()

        def seen() -> bool:
            apps = self.api("/v1/overview")["apps"]
            return bool(apps and apps[0]["signals"]["rate"])

        self.domain.wait(seen, 30, "the overview shows no traffic")

    def stop(self) -> None:
        """Let the customer go."""
        self._stop.set()
        self._customer.join(20)
        self._api.close()

    def _trade(self) -> None:
        with httpx.Client(base_url=self.domain.url, timeout=10, trust_env=False) as http:
            ids: list[str] = []
            while not self._stop.wait(0.1):
                try:
                    if len(ids) < 2:
                        opened = http.post("/accounts", json={"owner": "ann", "balance": 1_000_000})
                        ids += [opened.json()["id"]] if opened.is_success else []
                    else:
                        order = {"from": ids[0], "to": ids[1], "amount": 1}
                        http.post("/transfers", json=order)
                        http.get("/accounts/nobody")
                except httpx.HTTPError:
                    continue
