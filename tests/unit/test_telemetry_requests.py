"""How a proxy writes a request down, and what is read of it."""

from __future__ import annotations

import pytest

from bedstone.telemetry import requests
from bedstone.telemetry.requests import Hop, error_kind, hop, parse

ORDER = [
    *("hop", "method", "status", "flags", "grpc", "micros", "millis", "taken", "sent"),
    *("cluster", "peer", "route", "details", "path"),
]


def written(**fields: str) -> str:
    """A record as Envoy writes it: `-` for what there is not."""
    assert len(ORDER) == len(requests.RECORD.split("\t"))
    usual = dict.fromkeys(ORDER, "-") | {
        "hop": "outbound/bank/default/web/w1",
        "method": "GET",
        "status": "200",
        "micros": "1500",
        "taken": "3",
        "sent": "4",
        "cluster": "to/bank/default/web/risk",
        "path": "/score",
    }
    return "\t".join((usual | fields)[name] for name in ORDER)


def read(**fields: str) -> requests.ProxyRequest:
    found = parse(written(**fields), start=10.0, trace="ab" * 16, span="cd" * 8)
    assert found is not None
    return found


def test_a_record_says_who_called_whom_and_how_it_went() -> None:
    one = read()
    assert one.hop == Hop("outbound", "bank", "default", "web", "w1")
    assert (one.source, one.target, one.method, one.path) == ("web", "risk", "GET", "/score")
    assert (one.seconds, one.bytes_in, one.bytes_out, one.kind) == (0.0015, 3, 4, "")
    inbound = read(
        hop="inbound/bank/default/risk/r1",
        cluster="program/bank/default/risk/r1",
        peer="spiffe://bank.internal/bank/web",
    )
    assert (inbound.source, inbound.target, inbound.hop.instance) == ("web", "risk", "r1")
    gateway = read(
        hop="gateway/bank", cluster="to/bank/default/gateway/web", route="bank/web/%2Fapi"
    )
    assert (gateway.source, gateway.target, gateway.route) == ("gateway", "web", "/api")
    assert read(micros="-", millis="7").seconds == 0.007, "a request that was cut has no end"


def test_a_path_with_tabs_shifts_nothing() -> None:
    assert read(path="/a\tb\t503").path == "/a\tb\t503"
    assert read(path="/a\tb").status == 200


@pytest.mark.parametrize("text", ["", "x", "\t" * 20, written(hop="other/x"), written(status="?")])
def test_what_is_no_record_of_ours_is_left_out(text: str) -> None:
    assert parse(text, start=0.0, trace="", span="") is None


@pytest.mark.parametrize(
    ("name", "side", "identity"),
    [
        ("gateway/bank", "gateway", "gateway"),
        ("service/bank/default/web/w1/risk", "outbound", "web"),
        ("connect/bank/default/web", "outbound", "web"),
        ("call/n1/bank/default/operator", "outbound", "operator"),
    ],
)
def test_each_listener_of_requests_is_a_hop(name: str, side: str, identity: str) -> None:
    found = hop(name)
    assert found is not None
    assert (found.side, found.app, found.identity) == (side, "bank", identity)


@pytest.mark.parametrize("name", ["database/bank/default/web/w1/ledger", "telemetry/a/b/c/d", ""])
def test_other_listeners_are_none(name: str) -> None:
    assert hop(name) is None


@pytest.mark.parametrize(
    ("status", "flags", "details", "grpc", "kind"),
    [
        (200, "", "via_upstream", None, ""),
        (404, "", "via_upstream", None, ""),
        (500, "", "via_upstream", None, "answer"),
        (200, "", "via_upstream", 14, "answer"),
        (200, "", "via_upstream", 5, ""),
        (503, "UF,URX", "", None, "connect"),
        (504, "UT", "", None, "timeout"),
        (502, "UC", "", None, "reset"),
        (503, "UO", "", None, "overflow"),
        (503, "UH", "", None, "unavailable"),
        (0, "DC", "", None, "cancelled"),
        (200, "DC", "", None, ""),
        (403, "", "rbac_access_denied_matched_policy[none]", None, "denied"),
        (403, "", "via_upstream", None, ""),
        (0, "", "", None, "reset"),
    ],
)
def test_why_a_request_failed(
    status: int, flags: str, details: str, grpc: int | None, kind: str
) -> None:
    assert error_kind(status, flags, details, grpc) == kind
