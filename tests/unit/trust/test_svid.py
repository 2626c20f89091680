"""X.509-SVIDs on the side of who holds the key."""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from bedstone.errors import InvalidError, VerificationError
from bedstone.trust.authority import Authority
from bedstone.trust.spiffe import SpiffeId, node_id, server_id, workload_id
from bedstone.trust.svid import Svid, certificate_request, new_key

ID = "spiffe://test.internal/bank/web"


def issue(authority: Authority, spiffe_id: str = ID, seconds: float = 3600) -> Svid:
    key = new_key()
    issued = authority.sign(
        certificate_request(key, spiffe_id),
        spiffe_id,
        lifetime=dt.timedelta(seconds=seconds),
    )
    return Svid(spiffe_id, key, issued.chain, authority.bundle, time.time())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "authority")


def test_certificate_of_another_id_or_key_is_refused(authority: Authority) -> None:
    svid = issue(authority)
    svid.verify()
    with pytest.raises(VerificationError):
        replace(svid, spiffe_id=ID + "2").verify()
    with pytest.raises(VerificationError):
        replace(svid, key=new_key()).verify()
    with pytest.raises(VerificationError):
        replace(svid, chain="nonsense").verify()


def test_request_names_only_the_id() -> None:
    request = x509.load_pem_x509_csr(certificate_request(new_key(), ID).encode())
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [ID]
    assert request.subject == x509.Name([])


def test_secrets_are_not_shown(authority: Authority) -> None:
    svid = issue(authority)
    assert "PRIVATE" not in repr(svid)


def test_saved_is_private_and_read_back_as_a_whole(authority: Authority, tmp_path: Path) -> None:
    svid = issue(authority)
    path = tmp_path / "keys" / "web.json"
    svid.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert Svid.load(path) == svid


@pytest.mark.parametrize("damage", ["", "{}", "[]", "not json"])
def test_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "web.json"
    path.write_text(damage)
    assert Svid.load(path) is None
    assert Svid.load(tmp_path / "missing.json") is None


def test_mixed_up_file_is_as_good_as_none(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    issue(authority).save(path)
    value = json.loads(path.read_text()) | {"key": new_key()}
    path.write_text(json.dumps(value))
    assert Svid.load(path) is None


def test_renewal_is_at_half_of_what_was_left_when_it_came(authority: Authority) -> None:
    """The issuer dates back by a minute; a certificate for seconds is still renewed in time."""
    svid = issue(authority, seconds=4)
    now = time.time()
    assert now < svid.half < svid.until
    assert svid.half == pytest.approx(now + 2, abs=1.1)
    assert svid.valid(now)
    assert not svid.valid(svid.until)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://test.internal/a",
        "spiffe://",
        "spiffe://Test/a",
        "spiffe://test:80/a",
        "spiffe://test//a",
        "spiffe://test/a/",
        "spiffe://test/..",
        "spiffe://test/a?b",
        "spiffe://test/a b",
        "spiffe://test/" + "a" * 2048,
    ],
)
def test_malformed_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        SpiffeId.parse(text)


def test_ids_round_trip() -> None:
    for text in (
        workload_id("d.internal", "bank", "web"),
        node_id("d.internal", "local"),
        server_id("d.internal"),
    ):
        assert str(SpiffeId.parse(text)) == text
    assert workload_id("d", "bank", "web") == "spiffe://d/bank/web"
