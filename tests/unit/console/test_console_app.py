"""The console's listener: whom it lets in, and what no answer of it lacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from bedstone.console.app import CSRF, Console
from bedstone.console.files import Files
from bedstone.console.headers import SECURITY
from bedstone.console.links import LIFETIME, Attempts, Links
from bedstone.console.signins import IDLE, VISITOR, SignIns, Visitor
from bedstone.console.signins import LIFETIME as SESSION_LIFETIME
from bedstone.errors import NotFoundError
from bedstone.model.monitoring import ConsoleSession
from bedstone.model.resources import Token
from bedstone.store import Delete, Put, Store, open_store

ORIGIN = "http://bedstone.localhost:7000"


class Api:
    """An API that says whom it serves."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.hold = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        visitor: Visitor | None = scope.get(VISITOR)
        self.served.append(f"{request.method} {request.url.path}")
        if request.url.path == "/v1/broken":
            raise ValueError("an error of ours")
        if request.url.path == "/v1/stream":

            async def lines() -> object:
                yield b"first\n"
                await self.hold.wait()
                yield b"second\n"

            await StreamingResponse(lines())(scope, receive, send)  # type: ignore[arg-type]
            return
        body = {
            "who": visitor.who if visitor else None,
            "authorization": request.headers.get("authorization"),
            "body": (await request.body()).decode(),
        }
        await JSONResponse(body)(scope, receive, send)


class World:
    """A console over a memory store, with a clock of the test's own."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.now = 1_700_000_000.0
        self.store = store
        self.records: list[tuple[str, str]] = []
        self.links = Links(clock=self.clock)
        self.api = Api()
        self.signins = self.restarted()
        (folder / "assets").mkdir(exist_ok=True)
        (folder / "index.html").write_text("<!doctype html><title>Pages</title>" + "x" * 1000)
        (folder / "assets" / "app-3fa9c2d1.js").write_text("console.log(1);" * 100)
        (folder / "secret.py").write_text("no")
        self._console = Console(
            self.api,
            self.links,
            self.signins,
            lambda v: ConsoleSession(who=v.who, role=v.role, domain="d", version="1", csrf=v.csrf),
            port=7000,
            files=Files(folder),
            attempts=Attempts(burst=3, seconds=10.0, clock=self.clock),
        )

    def clock(self) -> float:
        return self.now

    def restarted(self) -> SignIns:
        """The sessions as a server that was started again finds them."""
        return SignIns(self.store, self, clock=self.clock)

    async def noted(self, who: str, action: str, target: str, detail: str) -> None:
        self.records.append((who, action))

    def client(self, origin: str = ORIGIN, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self._console, raise_app_exceptions=False)
        given = {"origin": origin, **headers}
        return httpx.AsyncClient(transport=transport, base_url=origin, headers=given)

    async def sign_in(self, client: httpx.AsyncClient, via: str = "local:root") -> httpx.Response:
        code, _ = self.links.make(via, "operator")
        answer = await client.post("/v1/console/login", json={"code": code})
        assert answer.status_code == 200, answer.text
        client.headers[CSRF] = answer.json()["csrf"]
        return answer


def run(folder: Path, check: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            await asyncio.wait_for(check(World(store, folder)), 20)

    asyncio.run(main())


def test_without_a_session_only_pages_and_liveness_are_served(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/")).status_code == 200
            assert world.api.served == ["GET /healthz"]
            for path in (
                "/v1/status",
                "/v1/x/../status",
                "/v1/%23/../status",
                "/v1/healthz%3F",
                "/prometheus/api/v1/query",
                "/metrics",
            ):
                for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
                    answer = await client.request(method, path)
                    assert answer.status_code == 401, (method, path)
            for path in ("/healthz%3F/v1/status", "/healthz%23", "/%2fv1/status", "//v1/status"):
                await client.get(path)
            assert world.api.served == ["GET /healthz"], "the API was not even asked"

    run(tmp_path, check)


def test_a_link_signs_in_once_and_the_cookie_is_out_of_every_script_s_reach(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            code, _ = world.links.make("local:root", "operator")
            answer = await client.post("/v1/console/login", json={"code": code})
            cookie = answer.headers["set-cookie"]
            for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age="):
                assert part in cookie, cookie
            assert "Domain" not in cookie, "it is sent to this host only"
            assert cookie.startswith("bedstone-7000="), "two consoles must not share a cookie"
            assert answer.json()["who"] == "console:root"
            assert (await client.get("/v1/status")).json()["who"] == "console:root"
        async with world.client() as another:
            again = await another.post("/v1/console/login", json={"code": code})
            assert again.status_code == 403, again.text
            assert "used already" in again.json()["message"]
            assert "set-cookie" not in again.headers
        assert world.records == [("console:root", "sign-in")]

    run(tmp_path, check)


def test_a_link_does_not_sign_in_after_two_minutes(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        code, grant = world.links.make("local:root", "operator")
        assert grant.expires_at == world.now + LIFETIME
        world.now += LIFETIME
        async with world.client() as client:
            answer = await client.post("/v1/console/login", json={"code": code})
            assert answer.status_code == 403

    run(tmp_path, check)


@pytest.mark.parametrize("way", ["/login", "/login?code=CODE", "/v1/console/login?code=CODE"])
def test_fetching_a_link_ahead_does_not_burn_it(tmp_path: Path, way: str) -> None:
    async def check(world: World) -> None:
        code, _ = world.links.make("local:root", "operator")
        async with world.client() as client:
            assert (await client.get(way.replace("CODE", code))).status_code in {200, 405}
            answer = await client.post("/v1/console/login", json={"code": code})
            assert answer.status_code == 200, answer.text

    run(tmp_path, check)


def test_failed_attempts_are_limited_and_the_limit_passes(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            for body in (b'{"code": "wrong"}', b"{", b'{"code": 1}'):
                answer = await client.post("/v1/console/login", content=body)
                assert answer.status_code in {403, 422}
            code, _ = world.links.make("local:root", "operator")
            refused = await client.post("/v1/console/login", json={"code": code})
            assert refused.status_code == 429
            world.now += float(refused.headers["retry-after"])
            again = await client.post("/v1/console/login", json={"code": code})
            assert again.status_code == 200, "what was not looked at is not used up"

    run(tmp_path, check)


def test_a_body_too_large_to_be_a_code_is_not_held(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            answer = await client.post("/v1/console/login", content=b"x" * 5000)
            assert answer.status_code == 413

    run(tmp_path, check)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7000",
        "bedstone.localhost.evil.example",
        "127.0.0.1.x",
        "",
        "*",
    ],
)
def test_another_name_for_this_machine_gets_nothing(tmp_path: Path, host: str) -> None:
    """DNS rebinding: the page's own name points to loopback, so the browser lets it read."""

    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            served = len(world.api.served)
            for path in ("/", "/healthz", "/v1/status", "/v1/console/login"):
                answer = await client.get(path, headers={"host": host})
                assert answer.status_code == 421, path
            assert len(world.api.served) == served

    run(tmp_path, check)


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:7000", "http://localhost:7777", "http://[::1]:7000"]
)
def test_every_name_of_loopback_and_every_tunnel_s_port_works(tmp_path: Path, origin: str) -> None:
    async def check(world: World) -> None:
        async with world.client(origin) as client:
            await world.sign_in(client)
            assert (await client.put("/v1/apps/a", json={})).status_code == 200

    run(tmp_path, check)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8080"},
        {"origin": "http://bedstone.localhost:8080"},
        {"origin": "https://bedstone.localhost:7000"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {CSRF: ""},
        {CSRF: "0" * 64},
        {CSRF: "\u00e4"},
    ],
)
def test_a_change_from_elsewhere_is_refused(
    tmp_path: Path, method: str, headers: dict[str, str]
) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            encoded = {name: value.encode() for name, value in headers.items()}
            answer = await client.request(method, "/v1/apps/a", headers=encoded)  # type: ignore[arg-type]
            assert answer.status_code == 403, answer.text
            assert world.api.served == []

    run(tmp_path, check)


def test_one_session_s_token_is_of_no_use_to_another(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as one, world.client() as other:
            await world.sign_in(one)
            await world.sign_in(other)
            other.headers[CSRF] = one.headers[CSRF]
            assert (await other.post("/v1/x")).status_code == 403

    run(tmp_path, check)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_reads_nothing_with_the_visitor_s_cookie(tmp_path: Path, site: str) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            answer = await client.get("/v1/status", headers={"sec-fetch-site": site})
            assert answer.status_code == 403
            assert world.api.served == []

    run(tmp_path, check)


def test_a_bearer_token_is_the_api_s_to_judge_and_no_cookie_helps_it(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            answer = await client.get("/v1/status", headers={"authorization": "Bearer t"})
            assert answer.json() == {"who": None, "authorization": "Bearer t", "body": ""}

    run(tmp_path, check)


def test_every_answer_carries_the_headers(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            code, _ = world.links.make("local:root", "operator")
            answers = [
                await client.get("/"),
                await client.get("/login"),
                await client.get("/assets/app-3fa9c2d1.js"),
                await client.get("/nothing.js"),
                await client.post("/"),
                await client.get("/v1/status"),
                await client.post("/v1/console/login", json={"code": "wrong"}),
                await client.post("/v1/console/login", json={"code": code}),
                await client.get("/v1/status"),
                await client.post("/v1/status"),
                await client.get("/", headers={"host": "evil.example"}),
                await client.get("/healthz"),
            ]
            etag = answers[0].headers["etag"]
            answers.append(await client.get("/", headers={"if-none-match": etag}))
            statuses = [answer.status_code for answer in answers]
            assert statuses == [200, 200, 200, 404, 405, 401, 403, 200, 200, 403, 421, 200, 304]
            for answer in answers:
                for name, value in SECURITY:
                    assert answer.headers.get_list(name.decode()) == [value.decode()], answer.url
                kept = answer.headers["cache-control"]
                assert kept == "no-store" or answer.request.url.path in {
                    "/",
                    "/login",
                    "/assets/app-3fa9c2d1.js",
                }, f"{answer.url}: {kept}"
            policy = answers[0].headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy

    run(tmp_path, check)


def test_pages_hold_no_script_or_style_of_their_own(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            page = (await client.get("/login")).text
            assert "<script>" not in page
            assert "style=" not in page
            assert " on" not in page.replace(" once", "").replace(" one", "")
            for path in ("/login/login.js", "/login/login.css"):
                assert path in page
                assert (await client.get(path)).status_code == 200

    run(tmp_path, check)


def test_a_session_outlives_the_server_and_ends_in_time(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            answer = await world.sign_in(client)
            secret = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
            began = world.now
            while world.now + IDLE - 1 < began + SESSION_LIFETIME:
                world.now += IDLE - 1
                assert await world.restarted().find(secret), "it is in use"
            world.now = began + SESSION_LIFETIME
            assert await world.restarted().find(secret) is None, "but not for ever"
            entries = (await world.store.list("signins/")).entries
            assert list(entries) == [], "what has ended is forgotten"

    run(tmp_path, check)


def test_a_session_that_nobody_uses_ends(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            world.now += IDLE
            assert (await client.get("/v1/status")).status_code == 401

    run(tmp_path, check)


def test_of_a_cookie_only_the_digest_is_kept(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            answer = await world.sign_in(client)
            secret = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
            held = (await world.store.list("")).entries
            assert held
            assert not any(secret in f"{e.key}{e.value!r}" for e in held)
            assert answer.json()["csrf"] not in str([e.value for e in held])

    run(tmp_path, check)


def test_signing_out_ends_the_session_and_its_streams(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            await world.sign_in(client)
            streaming = asyncio.create_task(client.get("/v1/stream"))
            while not world.api.served:  # noqa: ASYNC110 - a few turns of this very loop
                await asyncio.sleep(0)
            out = await client.post("/v1/console/logout")
            assert out.status_code == 200
            assert 'bedstone-7000=""' in out.headers["set-cookie"]
            ended = await asyncio.wait_for(streaming, 5)
            assert ended.text == "first\n", "nothing more was sent"
            assert (await client.get("/v1/status")).status_code == 401
            assert world.records[-1] == ("console:root", "sign-out")

    run(tmp_path, check)


def test_a_stream_ends_with_the_token_though_nobody_asks_for_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.console.signins.LOOK", 0.02)

    async def check(world: World) -> None:
        token = Token(name="ada", role="operator", digest="d", created_at=world.now)
        await world.store.commit([Put(token.key, token.encode())])
        async with world.client() as client:
            await world.sign_in(client, "token:ada")
            streaming = asyncio.create_task(client.get("/v1/stream"))
            await asyncio.sleep(0.1)
            assert not streaming.done()
            await world.store.commit([Delete(token.key)])
            assert (await asyncio.wait_for(streaming, 5)).text == "first\n"
            assert await world.signins.listed() == []

    run(tmp_path, check)


def test_an_operator_sees_who_is_signed_in_and_ends_it(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client(**{"user-agent": "A" * 5000}) as client:
            await world.sign_in(client)
            (listed,) = await world.signins.listed()
            assert (listed.who, listed.role, len(listed.agent)) == ("console:root", "operator", 200)
            await world.signins.end(listed.id, "local:root", "revoke")
            assert world.records[-1] == ("local:root", "revoke")
            assert (await client.get("/v1/status")).status_code == 401
            with pytest.raises(NotFoundError):
                await world.signins.end(listed.id, "local:root", "revoke")

    run(tmp_path, check)


@pytest.mark.parametrize("again", [False, True])
def test_a_session_ends_with_the_token_that_asked_for_it(tmp_path: Path, again: bool) -> None:  # noqa: FBT001
    async def check(world: World) -> None:
        token = Token(name="ada", role="operator", digest="d", created_at=world.now)
        await world.store.commit([Put(token.key, token.encode())])
        async with world.client() as client:
            world.now += 1
            await world.sign_in(client, "token:ada")
            assert (await client.get("/v1/status")).json()["who"] == "console:token:ada"
            await world.store.commit([Delete(token.key)])
            if again:
                fresh = token.model_copy(update={"created_at": world.now + 1})
                await world.store.commit([Put(token.key, fresh.encode())])
            assert (await client.get("/v1/status")).status_code == 401

    run(tmp_path, check)


def test_who_was_invited_through_a_token_s_session_goes_with_the_token(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        token = Token(name="ada", role="operator", digest="d", created_at=world.now)
        await world.store.commit([Put(token.key, token.encode())])
        async with world.client() as client:
            answer = await world.sign_in(client, "console:token:ada")
            assert answer.json()["who"] == "console:token:ada"
            await world.store.commit([Delete(token.key)])
            assert (await client.get("/v1/status")).status_code == 401
        async with world.client() as client:
            assert (await world.sign_in(client, "console:root")).json()["who"] == "console:root"

    run(tmp_path, check)


def test_files_are_kept_by_their_digest_and_sent_compressed(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client(**{"accept-encoding": "gzip"}) as client:
            script = await client.get("/assets/app-3fa9c2d1.js")
            assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert script.headers["content-encoding"] == "gzip"
            assert script.text == "console.log(1);" * 100
            head = await client.head("/assets/app-3fa9c2d1.js")
            assert head.headers["content-length"] == script.headers["content-length"]
            assert head.content == b""
            plain = await client.get(
                "/assets/app-3fa9c2d1.js", headers={"accept-encoding": "br, gzip;q=0"}
            )
            assert "content-encoding" not in plain.headers
            page = await client.get("/traces/abc?x=1")
            assert page.text.startswith("<!doctype html><title>Pages")
            assert page.headers["cache-control"] == "no-cache"

    run(tmp_path, check)


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.py",
        "/assets/../../secret.py",
        "/%2e%2e/secret.py",
        "/assets/..%2f..%2fsecret.py",
        "//etc/passwd.txt",
        "/secret.py",
        "/assets/%00.js",
        "/login/../../app.py",
    ],
)
def test_no_path_leads_out_of_the_files(tmp_path: Path, path: str) -> None:
    async def check(world: World) -> None:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b""}

        async def send(message: object) -> None:
            assert isinstance(message, dict)
            sent.append(message)

        raw = path.encode()
        scope = {
            "type": "http",
            "method": "GET",
            "path": httpx.URL(f"{ORIGIN}{path}").path if "%" in path else path,
            "raw_path": raw,
            "query_string": b"",
            "headers": [(b"host", b"localhost:7000")],
            "client": ("127.0.0.1", 1),
        }
        await world._console(scope, receive, send)
        assert sent[0]["status"] == 404, sent

    run(tmp_path, check)


def test_pages_that_are_built_anew_are_taken_up_and_missing_ones_told(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async with world.client() as client:
            assert (await client.get("/")).status_code == 200
            index = tmp_path / "index.html"
            index.unlink()
            assert (await client.get("/")).status_code == 200, "a build that is going on"
            index.write_text("new")
            assert (await client.get("/")).text == "new"
        async with open_store("memory://") as store:
            empty = tmp_path / "empty"
            empty.mkdir()
            bare = World(store, tmp_path)
            bare._console._files = Files(empty)
            async with bare.client() as client:
                answer = await client.get("/")
                assert answer.status_code == 503
                assert "reinstall" in json.loads(answer.text)["hint"]

    run(tmp_path, check)
