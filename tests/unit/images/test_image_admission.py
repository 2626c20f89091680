"""The policy of images: what it admits, and that it fails closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bedstone.errors import DeniedError, InvalidError, VerificationError
from bedstone.images.admission import admit, keep, read_policy
from bedstone.images.collection import collect
from bedstone.images.models import OCI_MANIFEST, Descriptor
from bedstone.images.reference import Reference
from bedstone.images.signatures import sign
from bedstone.images.store import ContentStore

_KEY = ec.generate_private_key(ec.SECP256R1())
_OTHER = ec.generate_private_key(ec.SECP256R1())
_NAME = Reference.parse("ghcr.io/acme/app:1")


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    (tmp_path / "acme.pub").write_bytes(
        _KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (tmp_path / "image-policy.yaml").write_text(
        "images:\n"
        "  - {match: ghcr.io/acme/*, signed_by: [acme.pub]}\n"
        "  - {match: docker.io/library/*, unsigned: true}\n"
        "  - {match: ghcr.io/*, unsigned: true}\n"
    )
    return ContentStore(tmp_path / "images")


@pytest.fixture
def digest(store: ContentStore) -> str:
    data = b"{}"
    digest = store.put(data)
    store.name(_NAME, Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(data)))
    return digest


def test_without_a_policy_everything_is_admitted(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "other" / "images")
    assert read_policy(store) is None
    assert admit(store, _NAME, store.put(b"x")) is None


def test_a_key_of_the_rule_must_have_signed(store: ContentStore, digest: str) -> None:
    with pytest.raises(VerificationError, match="no signature") as raised:
        admit(store, _NAME, digest)
    assert "acme.pub" in str(raised.value.hint)
    keep(store, digest, [sign(_NAME, digest, _OTHER)])
    with pytest.raises(VerificationError, match="none of the keys"):
        admit(store, _NAME, digest)
    keep(store, digest, [sign(_NAME, digest, _OTHER), sign(_NAME, digest, _KEY)])
    found = admit(store, _NAME, digest)
    assert found is not None
    assert found.digest == digest
    collect(store)
    assert admit(store, _NAME, digest) is not None


def test_a_signature_of_another_image_admits_nothing(store: ContentStore, digest: str) -> None:
    keep(store, digest, [sign(_NAME, store.put(b"other"), _KEY)])
    with pytest.raises(VerificationError, match="another image"):
        admit(store, _NAME, digest)


def test_the_first_rule_that_matches_decides_and_none_refuses(
    store: ContentStore, digest: str
) -> None:
    assert admit(store, Reference.parse("python"), digest) is None
    assert admit(store, Reference.parse("ghcr.io/others/app"), digest) is None
    for name in ("bob/python", "r.io/app", "docker.io.evil.io/library/python"):
        with pytest.raises(DeniedError, match="no rule"):
            admit(store, Reference.parse(name), digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images: {}",
        "images: [{match: a}]",
        "images: [{match: a, unsigned: true, signed_by: [acme.pub]}]",
        "images: [{match: a, signed_by: []}]",
        "images: [{match: a, signed_by: [missing.pub]}]",
        "images: [{match: a, unsigned: 'yes'}]",
        "images: [{match: a, unsigned: true, more: 1}]",
        "image: []",
        "{",
    ],
)
def test_a_policy_that_cannot_be_read_admits_nothing(store: ContentStore, text: str) -> None:
    (store.root.parent / "image-policy.yaml").write_text(text)
    with pytest.raises(InvalidError):
        admit(store, _NAME, store.put(b"x"))


def test_an_empty_policy_admits_nothing(store: ContentStore, digest: str) -> None:
    (store.root.parent / "image-policy.yaml").write_text("images: []")
    with pytest.raises(DeniedError):
        admit(store, Reference.parse("python"), digest)
