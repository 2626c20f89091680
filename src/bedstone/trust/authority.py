"""The domain's certificate authority.

Owns the root key and signs requests; which requests may be signed is decided by whoever calls
`sign`. The private key of a certificate is never seen here: only requests (RFC 2986) come in.

Rules:
- A leaf carries exactly one URI SAN, the SPIFFE id (SPIFFE X.509-SVID §2), no subject, CA false.
- Leaves are short-lived; nothing is revoked.
- The root key is written once, mode 0600, before the root certificate that makes it valid.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bedstone.errors import InvalidError, UnavailableError

LEAF_LIFETIME = dt.timedelta(hours=1)
ROOT_LIFETIME = dt.timedelta(days=3650)
_CLOCK_SKEW = dt.timedelta(minutes=1)


@dataclass(frozen=True)
class Issued:
    """A signed leaf: `chain` is PEM, leaf first; `expires` is seconds since the epoch."""

    chain: str
    expires: float


class Authority:
    """A root key and certificate for one trust domain."""

    def __init__(
        self, domain: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self.domain = domain
        self._key = key
        self._certificate = certificate

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """Load the authority kept in `directory`, or found a new one there.

        Raises:
            UnavailableError: the directory cannot be read or written.
            InvalidError: what is there is not an authority.
        """
        key_file, certificate_file = directory / "root.key", directory / "root.pem"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not certificate_file.exists():
                _found(key_file, certificate_file)
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except OSError as error:
            raise UnavailableError(
                f"the certificate authority in {directory} cannot be used: {error.strerror}",
                hint="check the directory's owner, permissions and free space",
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidError(
                f"{directory} does not hold a certificate authority: {error}",
                hint="restore root.key and root.pem from a backup",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidError(f"{key_file} is not an elliptic-curve key")
        domain = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return cls(str(domain), key, certificate)

    @property
    def bundle(self) -> str:
        """The trust bundle, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign(
        self,
        request: str,
        spiffe_id: str,
        *,
        now: dt.datetime | None = None,
        lifetime: dt.timedelta = LEAF_LIFETIME,
        hosts: Sequence[str] = (),
    ) -> Issued:
        """Sign a request for exactly `spiffe_id`; whatever names the request carries are ignored.

        Args:
            request: a certificate signing request, PEM.
            spiffe_id: the identity to certify.
            now: the time of signing; the certificate is valid from a minute before it.
            lifetime: how long it is valid.
            hosts: DNS names and IP addresses that a server certificate carries besides.

        Raises:
            InvalidError: not a request, its signature is wrong, or its key is not P-256.
        """
        try:
            parsed = x509.load_pem_x509_csr(request.encode())
            valid = parsed.is_signature_valid
            public = parsed.public_key()
        except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
            raise InvalidError(f"not a certificate signing request: {error}") from error
        if not valid:
            raise InvalidError("the certificate signing request's signature is wrong")
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise InvalidError("got a key of another type, expected elliptic curve P-256")
        now = now or dt.datetime.now(dt.UTC)
        leaf = (
            _builder(x509.Name([]), self._certificate.subject, public, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signing=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(spiffe_id), *map(_host_name, hosts)]
                ),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            leaf.public_bytes(serialization.Encoding.PEM).decode(),
            leaf.not_valid_after_utc.timestamp(),
        )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _found(key_file: Path, certificate_file: Path) -> None:
    """Make a root key and certificate, the certificate last and atomically."""
    domain = f"bedstone-{secrets.token_hex(4)}.internal"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    certificate = (
        _builder(name, name, key.public_key(), dt.datetime.now(dt.UTC), ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signing=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(
        key_file,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    write_private(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))


def write_private(file: Path, content: bytes) -> None:
    """Write a file of mode 0600 atomically and durably."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    lifetime: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signing,
        key_agreement=not signing,
        key_cert_sign=signing,
        crl_sign=signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        encipher_only=False,
        decipher_only=False,
    )
