"""Programs that nobody here wrote, used through the gateway by a client library of their own."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import kinto_http
import pytest
from kinto_http.exceptions import KintoException

pytestmark = pytest.mark.timeout(240)

ANN = ("ann", "s3cr3t")


@pytest.fixture(scope="module")
def kinto(make_domain: Callable[..., Any]) -> Any:
    """Kinto and httpbin behind one gateway, with an account."""
    domain = make_domain("examples/kinto")
    domain.up()
    account = {"data": {"password": ANN[1]}}
    made = httpx.put(f"{domain.url}/v1/accounts/{ANN[0]}", json=account, trust_env=False)
    assert made.status_code == 201, made.text
    return domain


@pytest.fixture
def client(kinto: Any) -> Any:
    return kinto_http.Client(server_url=f"{kinto.url}/v1", auth=ANN, timeout=20)


@pytest.fixture
def http(kinto: Any) -> Iterator[httpx.Client]:
    base = f"{kinto.url}/httpbin"
    with httpx.Client(base_url=base, timeout=20, trust_env=False) as found:
        yield found


def test_buckets_collections_and_records_are_made_read_and_deleted(client: Any) -> None:
    client.create_bucket(id="books")
    client.create_collection(id="novels", bucket="books")
    where = {"bucket": "books", "collection": "novels"}
    for number in range(12):
        client.create_record(id=f"n{number}", data={"title": f"Novel {number}"}, **where)
    found = client.get_records(_sort="title", _limit=5, pages=4, **where)
    assert len(found) == 12, "the pages' links lead back through the gateway"
    assert client.get_record(id="n3", **where)["data"]["title"] == "Novel 3"
    client.patch_record(id="n3", data={"pages": 42}, **where)
    assert client.get_record(id="n3", **where)["data"] | {"last_modified": 0} == {
        "id": "n3",
        "title": "Novel 3",
        "pages": 42,
        "last_modified": 0,
    }
    client.delete_record(id="n3", **where)
    with pytest.raises(KintoException) as caught:
        client.get_record(id="n3", **where)
    assert caught.value.response.status_code == 404


def test_an_update_of_what_has_changed_meanwhile_is_refused(client: Any) -> None:
    client.create_bucket(id="races", if_not_exists=True)
    client.create_collection(id="laps", bucket="races", if_not_exists=True)
    where = {"bucket": "races", "collection": "laps"}
    first = client.create_record(id="one", data={"time": 9}, **where)["data"]

    def change(**data: object) -> None:
        client.update_record(data={"id": "one", **data}, if_match=first["last_modified"], **where)

    change(time=8)
    with pytest.raises(KintoException) as caught:
        change(time=7)
    assert caught.value.response.status_code == 412
    assert client.get_record(id="one", **where)["data"]["time"] == 8
    with pytest.raises(KintoException) as caught:
        client.create_record(id="one", data={"time": 1}, safe=True, **where)
    assert caught.value.response.status_code == 412


def test_a_wrong_password_is_refused_by_kinto_itself(kinto: Any) -> None:
    stranger = kinto_http.Client(server_url=f"{kinto.url}/v1", auth=("ann", "wrong"))
    with pytest.raises(KintoException) as caught:
        stranger.get_buckets()
    assert caught.value.response.status_code == 401
    assert caught.value.response.json()["errno"] == 104  # Kinto's own: missing authorization


def test_a_batch_is_one_request(client: Any) -> None:
    with client.batch(bucket="default", collection="tasks") as batch:
        for number in range(25):
            batch.create_record(data={"number": number})
    numbers = {r["number"] for r in client.get_records(bucket="default", collection="tasks")}
    assert numbers == set(range(25))


def test_httpbin_answers_below_its_prefix(http: httpx.Client) -> None:
    assert http.get("/get", params={"a": "1 2"}).json()["args"] == {"a": "1 2"}
    assert http.post("/post", json={"b": [1]}).json()["json"] == {"b": [1]}
    large = b"x" * 3_000_000
    assert len(http.post("/post", content=large, headers={"content-type": "x/y"}).content) > 3e6
    for status in (204, 302, 404, 418, 500, 503):
        assert http.get(f"/status/{status}").status_code == status
    for method in ("PUT", "PATCH", "DELETE"):
        assert http.request(method, "/anything").json()["method"] == method
    redirected = http.get("/redirect/2", follow_redirects=True)
    assert redirected.status_code == 200, "redirects lead back through the gateway"
    assert redirected.url.path == "/httpbin/get"
    lines = http.get("/stream/5").text.splitlines()
    assert len(lines) == 5
    assert http.get("/gzip").json()["gzipped"] is True
    assert http.get("/basic-auth/u/p", auth=("u", "p")).status_code == 200
    cookies = http.get("/cookies", headers={"cookie": "k=v"}).json()["cookies"]
    assert cookies == {"k": "v"}


def test_internal_headers_from_outside_are_stripped_and_others_kept(http: httpx.Client) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {
        "x-bedstone-caller": "spiffe://forged/bank/operator",
        "x-bedstone-transaction": "forged",
        "x-bedstone-anything": "forged",
        "x-forwarded-client-cert": "By=forged",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-retry-on": "forged",
        "x-mine": "kept",
        "traceparent": trace,
    }
    seen = {k.lower(): v for k, v in http.get("/headers", headers=sent).json()["headers"].items()}
    assert "forged" not in str(seen)
    assert seen["x-mine"] == "kept"
    assert seen["x-bedstone-caller"].endswith("/kinto/gateway")
    assert seen["traceparent"].split("-")[1] == trace.split("-")[1]
    assert "x-envoy-upstream-rq-timeout-ms" not in seen


def test_data_survives_down_and_up(kinto: Any, client: Any) -> None:
    where = {"bucket": "default", "collection": "kept"}
    client.create_record(id="one", data={"kept": True}, **where)
    kinto.down()
    with pytest.raises(httpx.ConnectError):
        httpx.get(kinto.url, trust_env=False)
    kinto.up()
    assert client.get_record(id="one", **where)["data"]["kept"] is True
