"""`bedstone up` in a terminal: what is saved is shown as a difference and rolled out at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bedstone.testing.domain import COMMAND, Domain, Load
from bedstone.testing.foreground import Foreground

pytestmark = pytest.mark.timeout(150)

MANIFEST = """\
app: echo
gateway:
  port: PORT
  routes:
    - {path: /, to: web}
workloads:
  web:
    run: web:app
    replicas: 1
  other:
    run: other:app
"""

WEB = """
from words import WORD

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": WORD.encode()})
"""


def manifest(domain: Domain, *changes: tuple[str, str]) -> None:
    """Save the manifest the way that editors do: a new file takes the place of the old one."""
    text = MANIFEST.replace("PORT", str(domain.port))
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    draft = domain.directory / ".bedstone.yaml.swp"
    draft.write_text(text)
    draft.replace(domain.directory / "bedstone.yaml")


def answer(domain: Domain, path: str = "/") -> str:
    try:
        return httpx.get(f"{domain.url}{path}", timeout=5, trust_env=False).text
    except httpx.HTTPError as error:
        return type(error).__name__


@pytest.fixture
def domain(make_domain: Callable[..., Domain]) -> Iterator[Domain]:
    made = make_domain(manifest="app: echo")
    manifest(made)
    (made.directory / "web.py").write_text(WEB)
    (made.directory / "words.py").write_text("WORD = 'one'\n")
    (made.directory / "other.py").write_text(WEB.replace("WORD.encode()", "b'other'"))
    yield made
    made.down()


def mark(up: Foreground) -> int:
    return len(up.text)


def test_what_is_saved_is_rolled_out_with_no_failed_request(
    domain: Domain, make_load: Callable[..., Load]
) -> None:
    with Foreground([*COMMAND, "up"], domain.directory) as up:
        up.wait_for("Ctrl-C stops it; what you save is rolled out")
        assert answer(domain) == "one"

        def read(client: httpx.Client) -> int:
            return client.get(domain.url).status_code

        with make_load(read) as outcome:
            at = mark(up)
            words: Path = domain.directory / "words.py"
            words.write_text("WORD = 'two'\n")
            shown = up.wait_for(r"echo is ready \(generation 2\)", at)
            assert "saved; it will change:" in shown
            assert "workload web" in shown
            domain.wait(lambda: answer(domain) == "two", 5)

            at = mark(up)
            manifest(domain, ("replicas: 1", "replicas: 2"))
            shown = up.wait_for(r"echo is ready \(generation 3\)", at)
            assert "replicas: 1 → 2" in shown
            assert len([p for p in domain.parts() if p["name"].startswith("web-")]) == 2

            at = mark(up)
            route = "- {path: /, to: web}\n    - {path: /other, to: other}"
            manifest(domain, ("- {path: /, to: web}", route), ("replicas: 1", "replicas: 2"))
            shown = up.wait_for(r"echo is ready \(generation 4\)", at)
            assert "route /other" in shown
            assert answer(domain, "/other") == "other"
        assert len(outcome.answers) > 50
        assert outcome.failures == []
        up.interrupt()
        assert up.end() == 0
    assert domain.everything() == []


def test_what_is_broken_is_told_with_its_place_and_the_last_good_goes_on(domain: Domain) -> None:
    with Foreground([*COMMAND, "up"], domain.directory) as up:
        up.wait_for("Ctrl-C stops it")

        at = mark(up)
        manifest(domain, ("- {path: /, to: web}", "- {path: /, to: web"))
        shown = up.wait_for("what ran before goes on", at)
        assert "error: bedstone.yaml:" in shown
        assert answer(domain) == "one"

        at = mark(up)
        manifest(domain, ("replicas: 1", "replicsa: 2"))
        shown = up.wait_for("what ran before goes on", at)
        assert "error: bedstone.yaml:9:5: unknown key 'replicsa'" in shown
        assert "did you mean 'replicas'" in shown
        assert answer(domain) == "one"

        at = mark(up)
        (domain.directory / "bedstone.yaml").unlink()
        up.wait_for("what ran before goes on", at)
        assert answer(domain) == "one"

        at = mark(up)
        manifest(domain, ("replicas: 1", "replicas: 2"))
        up.wait_for(r"echo is ready \(generation 2\)", at)

        # Code that cannot start replaces nothing, and is told with what it wrote.
        at = mark(up)
        (domain.directory / "words.py").write_text("WORD = \n")
        up.wait_for("backoff.*(words.py|invalid syntax|exit status)", at)
        assert answer(domain) == "one"
        at = mark(up)
        (domain.directory / "words.py").write_text("WORD = 'good'\n")
        up.wait_for(r"echo is ready \(generation 4\)", at)
        domain.wait(lambda: answer(domain) == "good", 5)


def test_no_watch_does_not_react(domain: Domain) -> None:
    with Foreground([*COMMAND, "up", "--no-watch"], domain.directory) as up:
        up.wait_for("Ctrl-C stops it")
        assert "rolled out" not in up.text
        at = mark(up)
        (domain.directory / "words.py").write_text("WORD = 'two'\n")
        manifest(domain, ("replicas: 1", "replicas: 2"))
        time.sleep(2.5)
        assert up.text[at:].strip() == ""
        assert answer(domain) == "one"
        assert domain.ok("up", "--detach", "--wait"), "told to, it does"
        assert answer(domain) == "two"


def test_a_second_terminal_follows_and_leaves_it_running(domain: Domain) -> None:
    domain.ok("up", "--detach", "--wait")
    with Foreground([*COMMAND, "up"], domain.directory) as up:
        up.wait_for("echo is ready")
        assert "runs already" in up.text
        up.interrupt()
        assert up.end() == 0
        assert "left running; `bedstone down` stops it" in up.text
    assert answer(domain) == "one"


def test_parts_come_and_go_while_it_runs(domain: Domain, make_load: Callable[..., Load]) -> None:
    def up() -> str:
        return domain.ok("up", "--detach", "--wait", "--timeout", "30")

    up()
    with make_load(lambda client: client.get(domain.url).status_code) as outcome:
        use = ("run: web:app", "run: web:app\n    uses: [other, store]")
        store = ("workloads:", "databases:\n  store: {engine: postgres}\nworkloads:")
        manifest(domain, use, store)
        up()
        assert "postgres" in str(domain.pids())
        manifest(domain, ("run: web:app", "run: web:app\n    uses: [other]"))
        assert "data is kept" in up()
        domain.wait(lambda: "postgres" not in str(domain.pids()), 10, "nobody needs it")
        assert (domain.state / "data/echo/default/store").is_dir()
        manifest(domain, use, store)
        up()
        manifest(domain, ("  other:\n    run: other:app\n", ""))
        up()
        assert not [part for part in domain.parts() if part["name"].startswith("other")]
    assert outcome.failures == []
    assert domain.fetches_given_up() == {}, "no proxy waits for what it has"
    manifest(domain, ("replicas: 1", "replicas: 0"))
    up()
    assert "the request did not reach an instance" in answer(domain)
    manifest(domain)
    up()
    assert answer(domain) == "one"
