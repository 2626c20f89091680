"""The server's smaller parts: its configuration, its own certificate, its peers, its logs."""

import io
import logging
import time
from pathlib import Path

import pytest
from cryptography import x509

from bedstone.errors import DeniedError, InvalidError, UnavailableError
from bedstone.server.config import ServerConfig, host_and_port
from bedstone.server.credentials import ServerCredentials
from bedstone.server.peers import peer_identity, peer_node
from bedstone.telemetry import logs
from bedstone.telemetry.logs import JsonFormatter
from bedstone.trust.authority import Authority


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:443", ("::1", 443)), ("host:1", ("host", 1))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert host_and_port(text) == expected


@pytest.mark.parametrize("text", ["", "host", ":80", "host:http", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="expected HOST:PORT"):
        host_and_port(text)


def test_configuration(tmp_path: Path) -> None:
    file = tmp_path / "server.json"
    with pytest.raises(UnavailableError, match="cannot be read"):
        ServerConfig.load(file)
    file.write_text('{"state_dir": "/s", "run_dir": "/r", "typo": 1}')
    with pytest.raises(InvalidError, match="typo"):
        ServerConfig.load(file)
    file.write_text(
        '{"state_dir": "/s", "run_dir": "/r", "session": "127.0.0.1:1", "api_socket": "/r/a"}'
    )
    assert ServerConfig.load(file).store_url == "sqlite:///s/store.sqlite"


def test_the_servers_certificate_is_kept_until_half_of_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.open(tmp_path)
    credentials = ServerCredentials(authority, ["10.0.0.1"])
    first = credentials.pair()
    assert credentials.pair() == first
    leaf = x509.load_pem_x509_certificate(first[1].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{authority.domain}/server"
    ]
    hosts = [str(host) for host in names.get_values_for_type(x509.IPAddress)]
    assert {"127.0.0.1", "10.0.0.1"} <= set(hosts)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1900)
    assert credentials.pair() != first


def test_the_key_of_the_tcp_listener_is_private(tmp_path: Path) -> None:
    key, chain = ServerCredentials(Authority.open(tmp_path)).save(tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600
    assert "BEGIN CERTIFICATE" in chain.read_text()


class Peer:
    """A connection whose certificate carries these names."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": [name.encode() for name in self._names]}


def test_a_peer_is_who_its_certificate_says() -> None:
    identity = peer_identity(Peer("localhost", "spiffe://d/node/n"))
    assert (identity.domain, identity.segments) == ("d", ("node", "n"))


@pytest.mark.parametrize(
    "names", [(), ("localhost",), ("spiffe://d/a/b", "spiffe://d/c/d"), ("spiffe://d//",)]
)
def test_a_peer_without_exactly_one_id_is_nobody(names: tuple[str, ...]) -> None:
    with pytest.raises(DeniedError):
        peer_identity(Peer(*names))


def test_a_node_is_one_of_this_domain() -> None:
    assert peer_node(Peer("spiffe://d/node/n"), "d") == "n"


@pytest.mark.parametrize(
    "name", ["spiffe://other/node/n", "spiffe://d/bank/web", "spiffe://d/node/n/x", "spiffe://d"]
)
def test_who_is_no_node_of_this_domain_gets_no_session(name: str) -> None:
    with pytest.raises(DeniedError, match="is not a node of d"):
        peer_node(Peer(name), "d")


def test_a_log_line_is_an_event_with_fields() -> None:
    stream = io.StringIO()
    root, own = logging.getLogger(), logging.getLogger("bedstone")
    before = (root.handlers[:], root.level, own.level)
    try:
        logs.configure(stream)
        log = logging.getLogger("bedstone.test")
        log.info("node joined", extra={"node": "n", "path": Path("/x")})
        logging.getLogger("other").info("not ours, and not a warning")
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("failed")
    finally:
        root.handlers[:], root.level, own.level = before
    first, second = stream.getvalue().splitlines()
    assert '"event": "node joined"' in first
    assert '"node": "n"' in first
    assert '"path": "/x"' in first
    assert "ValueError: no" in second
    assert JsonFormatter().format(logging.makeLogRecord({"msg": "x"})).startswith("{")
