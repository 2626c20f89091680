"""What a box may reach: only what is named, and nothing of the inside by a name alone."""

from __future__ import annotations

import ipaddress

import pytest

from bedstone.boxes.egress import Refused, Rule, check, choose, parse, public
from bedstone.boxes.network import Port, parse_egress, parse_port
from bedstone.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("API.example.org", Rule("api.example.org")),
        ("api.example.org.:8443", Rule("api.example.org", 8443)),
        ("*", Rule("*")),
        ("*:22", Rule("*", 22)),
        ("10.0.0.1:5432", Rule("10.0.0.1", 5432)),
        ("[FD00:0::1]:80", Rule("fd00::1", 80)),
        ("[::1]", Rule("::1")),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse(text) == rule
    assert parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a:0",
        "a:65536",
        "a:b",
        "a b",
        "*.a",
        "**",
        "http://a",
        "a/b",
        "::1",
        "a@b",
        "ü.de",
    ],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_egress(text)


def test_only_what_is_named_may_be_asked_for() -> None:
    rules = [parse("api.example.org"), parse("db.example:5432"), parse("*:8443")]
    for host, port in (
        ("api.example.org", 443),
        ("api.example.org", 80),
        ("db.example", 5432),
        ("x", 8443),
    ):
        check(rules, host, port)
    for host, port in (
        ("api.example.org", 22),
        ("db.example", 443),
        ("a.api.example.org", 443),
        ("x", 443),
    ):
        with pytest.raises(Refused) as caught:
            check(rules, host, port)
        assert caught.value.more.startswith(f"--egress {host}")
    with pytest.raises(Refused):
        check([], "api.example.org", 443)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fd00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "64:ff9b:1::1", "fec0::1",
        "192.0.0.8", "192.88.99.1", "3fff::1",
    ],
)  # fmt: skip
def test_what_is_inside_is_reached_by_its_address_alone(address: str) -> None:
    assert not public(ipaddress.ip_address(address))
    for rules in ([parse("*")], [parse("a.example")], [Rule(address, 5432)]):
        with pytest.raises(Refused, match="not public"):
            choose(rules, "a.example", 443, [address])
    named = str(ipaddress.ip_address(address))
    assert choose([parse("a.example"), Rule(named)], "a.example", 443, [address]) == [named]


def test_of_several_addresses_the_public_ones_are_chosen() -> None:
    found = ["10.0.0.1", "8.8.8.8", "2606:4700::1111"]
    assert choose([parse("*")], "a", 443, found) == ["8.8.8.8", "2606:4700::1111"]
    with pytest.raises(Refused):
        choose([parse("*")], "a", 443, [])


def test_a_public_address_of_this_machine_is_reached_by_itself_alone() -> None:
    own = {"8.8.8.8"}.__contains__
    assert choose([parse("*")], "a", 443, ["8.8.8.8", "1.1.1.1"], own) == ["1.1.1.1"]
    with pytest.raises(Refused, match="this machine's own"):
        choose([parse("*")], "a", 443, ["8.8.8.8"], own)
    assert choose([parse("8.8.8.8")], "8.8.8.8", 443, ["8.8.8.8"], own) == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Port("127.0.0.1", 8080, 80)),
        ("80", Port("127.0.0.1", 0, 80)),
        ("0.0.0.0:8080:80/tcp", Port("0.0.0.0", 8080, 80)),
        ("10.0.0.1::80", Port("10.0.0.1", 0, 80)),
        ("[::1]:8080:80", Port("::1", 8080, 80)),
    ],
)
def test_ports(text: str, port: Port) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    "text",
    ["", "a", "0", "8080:0", "65536:80", "8080:65536", "localhost:80:80", "::1:80:80", "-1:80",
     "80:80/sctp", "80-90:80-90", "1:2:3:4", "127.0.0.1:80", "²:80"],
)  # fmt: skip
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidError, match="expected"):
        parse_port(text)


def test_udp_is_refused() -> None:
    with pytest.raises(InvalidError, match="UDP is not relayed"):
        parse_port("53:53/udp")
