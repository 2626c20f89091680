"""The certificate authority: what it signs, what it refuses, what it keeps."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bedstone.errors import InvalidError, UnavailableError
from bedstone.trust.authority import Authority


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://evil/admin")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def test_a_leaf_carries_the_identity_decided_here_not_the_one_asked_for(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "authority")
    identity = f"spiffe://{authority.domain}/bank/web"
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    issued = authority.sign(
        request(ec.generate_private_key(ec.SECP256R1())), identity, now=now, hosts=["127.0.0.1"]
    )
    leaf = x509.load_pem_x509_certificate(issued.chain.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert leaf.not_valid_after_utc == now + dt.timedelta(hours=1)
    assert issued.expires == leaf.not_valid_after_utc.timestamp()
    root = x509.load_pem_x509_certificate(authority.bundle.encode())
    leaf.verify_directly_issued_by(root)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_authority_is_the_same_after_a_restart_and_its_key_is_private(tmp_path: Path) -> None:
    first, second = Authority.open(tmp_path), Authority.open(tmp_path)
    assert (first.domain, first.bundle) == (second.domain, second.bundle)
    assert (tmp_path / "root.key").stat().st_mode & 0o777 == 0o600


def test_a_key_left_without_its_certificate_is_founded_anew(tmp_path: Path) -> None:
    """A kill between the two writes leaves a key that never signed anything."""
    Authority.open(tmp_path)
    (tmp_path / "root.pem").unlink()
    again = Authority.open(tmp_path)
    again.sign(request(ec.generate_private_key(ec.SECP256R1())), f"spiffe://{again.domain}/x/y")


@pytest.mark.parametrize("text", ["", "not a request", "-----BEGIN CERTIFICATE REQUEST-----"])
def test_what_is_no_request_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidError, match="not a certificate signing request"):
        Authority.open(tmp_path).sign(text, "spiffe://d/a/w")


def test_other_keys_are_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    for key in (
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        with pytest.raises(InvalidError, match="P-256"):
            authority.sign(request(key), "spiffe://d/a/w")


def test_a_tampered_request_is_refused(tmp_path: Path) -> None:
    good = request(ec.generate_private_key(ec.SECP256R1()))
    body = x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER)
    bad = x509.load_der_x509_csr(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(InvalidError):
        Authority.open(tmp_path).sign(
            bad.public_bytes(serialization.Encoding.PEM).decode(), "spiffe://d/a/w"
        )


def test_a_damaged_authority_says_so(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    (tmp_path / "root.key").write_text("damaged")
    with pytest.raises(InvalidError, match="does not hold a certificate authority"):
        Authority.open(tmp_path)
    (tmp_path / "root.key").unlink()
    with pytest.raises(UnavailableError, match="cannot be used"):
        Authority.open(tmp_path)
