"""The typed client against a real HTTP server with canned answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from bedstone.client.api import Client
from bedstone.client.transport import Endpoint
from bedstone.errors import (
    ConflictError,
    DeniedError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.model.api import (
    ApplyRequest,
    ApplyResult,
    AppStatus,
    CallRequest,
    CallResult,
    Change,
    DomainStatus,
    JoinGrant,
    JoinRequest,
    ResourceEntry,
    ResourceList,
    TokenGrant,
    TokenRequest,
)
from bedstone.model.messages import LogLine
from bedstone.model.resources import AuditRecord
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.testing.api import Answer, FakeApi, problem

SPEC = AppSpec(app="bank", workloads={"web": WorkloadSpec(run="web:app")})
REQUEST = ApplyRequest(spec=SPEC, root="/srv/bank", sources={"web": "3fa9"})
RESULT = ApplyResult(app="bank", generation=2, changes=(Change(op="+", subject="workload web"),))
STATUS = AppStatus(app="bank", generation=2, ready=True)
DOMAIN = DomainStatus(domain="d", version="0", started_at=1.0, complete=True)
ENTRY = ResourceEntry(kind="app", name="bank", revision=7, value={"name": "bank"})

Use = Callable[[Client], Coroutine[Any, Any, Any]]


def use(endpoint: Endpoint, action: Use, *, timeout: float = 10.0) -> Any:
    async def main() -> Any:
        async with Client(endpoint, timeout=timeout) as client:
            return await action(client)

    return asyncio.run(main())


def failure(endpoint: Endpoint, action: Use, *, timeout: float = 10.0) -> Error:
    with pytest.raises(Error) as caught:
        use(endpoint, action, timeout=timeout)
    return caught.value


# Failures.


def test_nothing_listens(socket: Path, endpoint: Endpoint) -> None:
    error = failure(endpoint, lambda client: client.status())
    assert isinstance(error, UnavailableError)
    assert str(socket) in error.message
    assert error.hint is not None
    assert "bedstone up" in error.hint


def test_each_kind_of_problem_becomes_its_error(fake: FakeApi, endpoint: Endpoint) -> None:
    kinds = (InvalidError, NotFoundError, ConflictError, DeniedError, UnavailableError)
    for kind in (*kinds, UnknownOutcomeError):
        fake.answers["PUT /v1/apps/bank"] = problem(kind("it went wrong", hint="do better"))
        error = failure(endpoint, lambda client: client.apply(REQUEST))
        assert type(error) is kind
        assert (error.message, error.hint) == ("it went wrong", "do better")


def test_retry_after_is_kept(fake: FakeApi, endpoint: Endpoint) -> None:
    answer = problem(UnavailableError("busy"), headers={"retry-after": "3"})
    fake.answers["GET /v1/status"] = answer
    error = failure(endpoint, lambda client: client.status())
    assert isinstance(error, UnavailableError)
    assert error.retry_after == 3.0


def test_an_answer_that_is_no_problem_is_explained_by_its_status(
    fake: FakeApi, endpoint: Endpoint
) -> None:
    detail = [{"loc": ["body", "spec", "app"], "msg": "field required"}]
    fake.answers["PUT /v1/apps/bank"] = Answer({"detail": detail}, 422)
    error = failure(endpoint, lambda client: client.apply(REQUEST))
    assert isinstance(error, InvalidError)
    assert "body.spec.app: field required" in error.message
    fake.answers["GET /v1/status"] = Answer(b"<html>bad gateway</html>", 418)
    error = failure(endpoint, lambda client: client.status())
    assert (error.code, error.message) == ("internal", "the server answered 418")
    fake.answers["GET /v1/status"] = Answer({}, 401)
    assert isinstance(failure(endpoint, lambda client: client.status()), DeniedError)


def test_an_answer_of_another_version_is_not_a_crash(fake: FakeApi, endpoint: Endpoint) -> None:
    fake.answers["GET /v1/status"] = Answer({"domain": "d"})
    error = failure(endpoint, lambda client: client.status())
    assert isinstance(error, UnavailableError)
    assert "DomainStatus" in error.message


def test_time_out_of_a_read_is_unavailable_and_of_a_change_unknown(
    fake: FakeApi, endpoint: Endpoint
) -> None:
    fake.answers["GET /v1/status"] = Answer(DOMAIN, delay=60)
    fake.answers["PUT /v1/apps/bank"] = Answer(RESULT, delay=60)
    began = time.monotonic()
    read = failure(endpoint, lambda client: client.status(), timeout=0.2)
    change = failure(endpoint, lambda client: client.apply(REQUEST), timeout=0.2)
    assert isinstance(read, UnavailableError)
    assert isinstance(change, UnknownOutcomeError)
    assert time.monotonic() - began < 40


def test_a_stream_cut_in_the_middle_is_unavailable(fake: FakeApi, endpoint: Endpoint) -> None:
    fake.answers["GET /v1/apps/bank/watch"] = Answer([STATUS], stream=True, cut=True)
    seen: list[AppStatus] = []

    async def watch(client: Client) -> None:
        async for status in client.watch("bank"):
            seen.append(status)  # noqa: PERF401 - what came before the failure counts

    assert isinstance(failure(endpoint, watch), UnavailableError)
    assert seen == [STATUS]


def test_a_problem_inside_a_stream_is_raised(fake: FakeApi, endpoint: Endpoint) -> None:
    lines = [STATUS, {"code": "not_found", "message": "the app is gone", "hint": None}]
    fake.answers["GET /v1/apps/bank/watch"] = Answer(lines, stream=True)

    async def watch(client: Client) -> None:
        async for _ in client.watch("bank"):
            pass

    error = failure(endpoint, watch)
    assert isinstance(error, NotFoundError)
    assert error.message == "the app is gone"


def test_a_refused_stream_is_its_error(fake: FakeApi, endpoint: Endpoint) -> None:
    fake.answers["GET /v1/apps/bank/watch"] = problem(NotFoundError("no app bank"))

    async def watch(client: Client) -> None:
        async for _ in client.watch("bank"):
            pass

    assert isinstance(failure(endpoint, watch), NotFoundError)


@pytest.mark.parametrize("url", ["ftp://host", "host:8443", "https://", "http://mesh.example.org"])
def test_a_url_that_cannot_be_trusted_with_a_token_is_refused(url: str) -> None:
    with pytest.raises(InvalidError):
        Endpoint(url=url, token="secret")


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    endpoint = Endpoint(socket=tmp_path / ("x" * 120))
    assert isinstance(failure(endpoint, lambda client: client.status()), InvalidError)


def test_a_missing_authority_is_the_users_mistake(tmp_path: Path) -> None:
    endpoint = Endpoint(url="https://127.0.0.1:1", authority=tmp_path / "none.pem")
    assert isinstance(failure(endpoint, lambda client: client.status()), InvalidError)


def test_a_token_is_never_shown() -> None:
    assert "secret" not in repr(Endpoint(url="https://host", token="secret"))
    assert "secret" not in str(Endpoint(url="https://host", token="secret"))


# Each row of the table.


def test_every_row_is_sent_as_the_table_says(fake: FakeApi, endpoint: Endpoint) -> None:
    token = TokenGrant(name="ada", role="operator", secret="s")
    grant = JoinGrant(domain="d", chain="c", bundle="b", session="127.0.0.1:1")
    audit = AuditRecord(at=1.0, who="ada", action="apply", target="bank")
    listed = ResourceList(revision=7, items=(ENTRY,))
    call = CallRequest(path="/x", identity="web")
    called = CallResult(status=200)
    rows: dict[str, tuple[Any, Use]] = {
        "GET /v1/openapi.json": ({"openapi": "3.1.0"}, lambda c: c.openapi()),
        "GET /v1/status": (DOMAIN, lambda c: c.status()),
        "GET /v1/apps/bank/status": (STATUS, lambda c: c.app_status("bank")),
        "POST /v1/apps/bank/plan": (RESULT, lambda c: c.plan(REQUEST)),
        "PUT /v1/apps/bank": (RESULT, lambda c: c.apply(REQUEST)),
        "DELETE /v1/apps/bank": (RESULT, lambda c: c.delete_app("bank")),
        "POST /v1/apps/bank/workloads/web/restart": (RESULT, lambda c: c.restart("bank", "web")),
        "POST /v1/apps/bank/workloads/web/call": (called, lambda c: c.call("bank", "web", call)),
        "GET /v1/resources/app": (listed, lambda c: c.resources("app", "ba")),
        "GET /v1/resources/app/bank": (ENTRY, lambda c: c.resource("app", "bank")),
        "DELETE /v1/resources/instance/bank/default/web/web-1": (
            RESULT,
            lambda c: c.delete_resource("instance", "bank/default/web/web-1"),
        ),
        "GET /v1/tokens": ([token], lambda c: c.tokens()),
        "POST /v1/tokens": (
            token,
            lambda c: c.create_token(TokenRequest(name="ada", role="operator")),
        ),
        "GET /v1/audit": ([audit], lambda c: c.audit(5)),
        "POST /v1/nodes/local/join": (grant, lambda c: c.join("local", JoinRequest(request="r"))),
    }
    for row, (body, action) in rows.items():
        fake.answers[row] = Answer(body)
        assert use(endpoint, action) == body, row
        asked = fake.asked[-1]
        assert f"{asked.method} {asked.path}" == row
    fake.answers["DELETE /v1/tokens/ada"] = Answer({"deleted": "ada"})
    use(endpoint, lambda client: client.delete_token("ada"))
    use(endpoint, lambda client: client.health())
    bodies = {f"{a.method} {a.path}": a.body for a in fake.asked}
    assert ApplyRequest.model_validate(bodies["PUT /v1/apps/bank"]) == REQUEST
    queries = {a.path: a.query for a in fake.asked}
    assert queries["/v1/resources/app"] == {"prefix": "ba"}
    assert queries["/v1/audit"] == {"limit": "5"}


def test_names_cannot_leave_their_segment(fake: FakeApi, endpoint: Endpoint) -> None:
    failure(endpoint, lambda client: client.app_status("a?b#c"))
    assert fake.asked[-1].path == "/v1/apps/a?b#c/status"
    assert fake.asked[-1].query == {}


def test_the_token_is_sent_as_a_bearer(fake: FakeApi, socket: Path) -> None:
    fake.answers["GET /v1/status"] = Answer(DOMAIN)
    use(Endpoint(socket=socket, token="secret"), lambda client: client.status())
    assert fake.asked[-1].headers["authorization"] == "Bearer secret"


# Streams.


def test_a_stream_ends_when_the_server_ends_it(fake: FakeApi, endpoint: Endpoint) -> None:
    later = STATUS.model_copy(update={"generation": 3})
    fake.answers["GET /v1/apps/bank/watch"] = Answer([STATUS, later], stream=True)

    async def watch(client: Client) -> list[AppStatus]:
        return [status async for status in client.watch("bank")]

    assert use(endpoint, watch) == [STATUS, later]


def test_logs_pass_their_window_and_large_lines_come_whole(
    fake: FakeApi, endpoint: Endpoint
) -> None:
    line = LogLine(time=1.0, source="web-1", text="x" * 300_000)
    for path in ("apps/bank/workloads/web", "engines/envoy"):
        fake.answers[f"GET /v1/{path}/logs"] = Answer([line, line], stream=True)

    async def read(client: Client) -> list[LogLine]:
        own = [x async for x in client.logs("bank", "web", follow=True, since=2.5, tail=7)]
        return own + [x async for x in client.engine_logs("envoy")]

    assert use(endpoint, read) == [line] * 4
    assert fake.asked[0].query == {"follow": "true", "since": "2.500", "tail": "7"}
    assert fake.asked[1].query == {}


def test_leaving_a_stream_closes_its_connection(fake: FakeApi, endpoint: Endpoint) -> None:
    fake.answers["GET /v1/apps/bank/watch"] = Answer([STATUS], stream=True, hold=True)

    async def first(client: Client) -> AppStatus:
        async with aclosing(client.watch("bank")) as statuses:
            return await anext(statuses)

    assert use(endpoint, first) == STATUS
    deadline = time.monotonic() + 5
    while not fake.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.left == 1
