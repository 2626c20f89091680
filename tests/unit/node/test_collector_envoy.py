"""What is made of a proxy's statistics from one reading to the next."""

import http.server
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bedstone.control.mesh.counting import error_kind, route_of, route_prefix
from bedstone.errors import UnavailableError
from bedstone.node.collector.envoy import EnvoyStatistics
from bedstone.node.collector.envoy_text import EnvoyCounts, Naming
from bedstone.node.collector.processes import identity_of
from bedstone.telemetry import names
from bedstone.telemetry.names import ERROR_KINDS

NAMING = Naming("n1", {"bank/default/web/w1": "r1"}.get)
GATEWAY = (
    'envoy_http_downstream_rq_xx{envoy_response_code_class="2",'
    'envoy_http_conn_manager_prefix="gateway/bank"}'
)
ROUTE = (
    'envoy_vhost_route_upstream_rq_xx{envoy_response_code_class="2",envoy_virtual_host="VHOST",'
    'envoy_route="bank/web/%2F"}'
)
TO_WEB = names.GATEWAY_REQUESTS.series("envoy", app="bank", node="n1", code="2xx")
THE_ROUTE = names.ROUTE_REQUESTS.series(
    "envoy", app="bank", route="/", to="web", node="n1", code="2xx"
)


def read(counts: EnvoyCounts, **values: float) -> dict[str, float]:
    keys = {"gateway": GATEWAY} | {
        name: ROUTE.replace("VHOST", name) for name in values if name != "gateway"
    }
    text = "".join(f"{keys[name]} {value:g}\n" for name, value in values.items())
    got = counts.update(b"# TYPE x counter\n" + text.encode())
    return {"gateway": got.get(TO_WEB, -1), "route": got.get(THE_ROUTE, -1)}


def test_a_statistic_that_was_made_anew_counts_on_from_where_it_was() -> None:
    counts = EnvoyCounts(NAMING)
    assert read(counts, gateway=5)["gateway"] == 5
    assert read(counts, gateway=9)["gateway"] == 9
    assert read(counts, gateway=2)["gateway"] == 11
    assert read(counts, gateway=3)["gateway"] == 12


def test_a_statistic_that_is_away_is_gone_and_begins_at_zero_when_it_comes_again() -> None:
    counts = EnvoyCounts(NAMING)
    read(counts, gateway=5)
    assert read(counts) == {"gateway": -1, "route": -1}
    assert read(counts, gateway=2)["gateway"] == 2


def test_what_two_statistics_count_of_one_series_is_added_and_stays_when_one_is_away() -> None:
    counts = EnvoyCounts(NAMING)
    assert read(counts, any=4, other=3)["route"] == 7
    assert read(counts, any=5)["route"] == 8
    assert read(counts, any=5, other=1)["route"] == 9
    assert read(counts)["route"] == -1


def test_an_instance_that_nobody_knows_has_no_series() -> None:
    line = GATEWAY.replace("gateway/bank", "inbound/bank/default/web/w9")
    assert EnvoyCounts(NAMING).update(f"{line} 5\n".encode()) == {}


def test_a_request_is_known_by_one_code_and_every_kind_is_one_of_ours() -> None:
    def codes(code: str, flags: str) -> dict[str, float]:
        line = (
            'envoy_bedstone_ended{listener="inbound/bank/default/web/w1",cluster="program/x",'
            f'code="{code}",flags="{flags}",route="",outcome=""}} 1\n'
        )
        values = EnvoyCounts(NAMING).update(line.encode())
        return {
            dict(s.labels).get("code", dict(s.labels).get("kind", "")): v for s, v in values.items()
        }

    assert codes("0", "DC") == {"none": 1, "cancelled": 1}
    assert codes("101", "DC") == {"1xx": 1}
    assert codes("200", "DR") == {"cancelled": 1}  # its code is among Envoy's own counters
    assert codes("503", "UF,URX") == {"connect": 1}
    for flags in ("UH", "UF", "UO", "UT", "UC", "DC", "-", "", "UAEX", "XX"):
        for code in (0, 200, 404, 500, 502, 503, 504):
            for outcome in ("", "not-applied", "unknown"):
                kind = error_kind(code, flags, outcome)
                assert kind in ERROR_KINDS or (kind is None and code < 500)


@pytest.mark.parametrize(
    ("code", "flags", "outcome", "kind"),
    [
        (500, "-", "", "answer"),
        (503, "-", "not-applied", "connect"),
        (502, "URX", "unknown", "reset"),
        (504, "-", "unknown", "timeout"),
        (504, "UT", "", "timeout"),
        (503, "UH", "", "unavailable"),
        (503, "UO", "", "overflow"),
        (404, "NR", "", None),
        (200, "UC", "", "reset"),
    ],
)
def test_the_kind_of_a_failure(code: int, flags: str, outcome: str, kind: str | None) -> None:
    assert error_kind(code, flags, outcome) == kind


@pytest.mark.parametrize("where", ["/", "/a/b", "api.example.com/v1.0", "h/%2F", "/ü?x"])
def test_a_route_s_name_comes_back_from_its_statistics(where: str) -> None:
    prefix = route_prefix("bank", "web", where)
    assert "." not in prefix
    assert route_of(prefix) == ("bank", "web", where)
    assert route_of("of/somebody/else/s") is None


class _Admin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200
    text = f"{GATEWAY} 7\n"

    def do_GET(self) -> None:
        body = self.text.encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def admin(path: Path, **changes: object) -> Iterator[None]:
    handler = type("Handler", (_Admin,), changes)
    server = socketserver.ThreadingUnixStreamServer(str(path), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        path.unlink()


def test_one_connection_reads_and_says_which_process_answered(tmp_path: Path) -> None:
    statistics = EnvoyStatistics(tmp_path / "s", NAMING, 1.0)
    with admin(tmp_path / "s"):
        statistics.merge()
        assert statistics.read() == {TO_WEB: 7}
    assert statistics.incarnation == identity_of(os.getpid())
    statistics.close()


def test_a_proxy_that_is_away_or_fails_is_said_to_be(tmp_path: Path) -> None:
    statistics = EnvoyStatistics(tmp_path / "s", NAMING, 0.05)
    with pytest.raises(UnavailableError, match="does not answer: No such file"):
        statistics.merge()
    with admin(tmp_path / "s", status=503), pytest.raises(UnavailableError, match="with 503"):
        statistics.merge()
    statistics.close()


def test_a_proxy_that_hangs_is_given_up_and_found_again(tmp_path: Path) -> None:
    statistics = EnvoyStatistics(tmp_path / "s", NAMING, 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(UnavailableError, match="no answer in time"):
            statistics.read()
    (tmp_path / "s").unlink()
    with admin(tmp_path / "s"):
        assert statistics.read() == {TO_WEB: 7}
    statistics.close()
