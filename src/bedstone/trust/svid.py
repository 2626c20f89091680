"""X.509-SVIDs on the side of who holds the key: make a key, ask for a certificate, keep both.

Rules: a private key is made here, written only with mode 0600 into a directory of mode 0700, and
never part of a message or of a `repr`. A stored identity is read back only as a whole: the key, the
chain and the bundle lie in one file, replaced atomically, so that no reader sees half of a renewal.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bedstone.errors import InvalidError, VerificationError


def new_key() -> str:
    """A new EC P-256 private key: PEM, PKCS#8, not encrypted."""
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def certificate_request(key: str, spiffe_id: str) -> str:
    """A request (PEM, RFC 2986) whose only subject is the URI name `spiffe_id`."""
    private = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InvalidError("got a key of another kind, expected EC P-256")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True
        )
        .sign(private, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True)
class Svid:
    """An identity: the SPIFFE id, its private key, chain (leaf first) and trust bundle, all PEM.

    `obtained` is when it was received, seconds since the epoch: an issuer may date it back.
    """

    spiffe_id: str
    key: str = field(repr=False)
    chain: str = field(repr=False)
    bundle: str = field(repr=False)
    obtained: float = 0.0

    @cached_property
    def leaf(self) -> x509.Certificate:
        """The certificate itself."""
        try:
            return x509.load_pem_x509_certificates(self.chain.encode())[0]
        except (ValueError, IndexError) as error:
            raise VerificationError(f"the chain of {self.spiffe_id} is not readable") from error

    @cached_property
    def since(self) -> float:
        """Start of validity, seconds since the epoch."""
        return self.leaf.not_valid_before_utc.timestamp()

    @cached_property
    def until(self) -> float:
        """End of validity, seconds since the epoch."""
        return self.leaf.not_valid_after_utc.timestamp()

    @property
    def half(self) -> float:
        """When it is to be renewed, seconds since the epoch."""
        return (max(self.since, self.obtained) + self.until) / 2

    def valid(self, now: float) -> bool:
        """Whether it is usable at `now` (seconds since the epoch)."""
        return self.since <= now < self.until

    def verify(self) -> None:
        """Check that the certificate is for this id and this key.

        Raises:
            VerificationError: it is not; the issuer is at fault, or an answer was mixed up.
        """
        try:
            names = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        # X.509-SVID, section 2: exactly one URI name.
        if uris != [self.spiffe_id]:
            raise VerificationError(f"got a certificate for {uris}, expected {self.spiffe_id}")
        private = serialization.load_pem_private_key(self.key.encode(), None)
        if private.public_key() != self.leaf.public_key():
            raise VerificationError(f"the certificate of {self.spiffe_id} is for another key")

    def save(self, path: Path) -> None:
        """Write it to `path`, atomically, mode 0600; the folder is created with mode 0700."""
        write_private(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Svid | None:
        """What `save` wrote; None if there is none or it is damaged."""
        try:
            value = json.loads(path.read_text())
            svid = cls(**value)
            svid.verify()
        except (OSError, ValueError, TypeError, VerificationError):
            return None
        return svid


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically, mode 0600 in a folder of mode 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    draft.replace(path)
