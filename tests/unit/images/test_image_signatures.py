"""Signatures as cosign makes them: who signed, and everything that is no proof of it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from bedstone.errors import InvalidError, VerificationError
from bedstone.images import digests, signatures
from bedstone.images.credentials import NoKeyring
from bedstone.images.endpoints import Endpoints
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.signatures import (
    ANNOTATION,
    PrivateKey,
    Signed,
    read_private_key,
    read_public_key,
    sign,
    signature_tag,
    verify,
)
from bedstone.testing.registry import Registry, running_registry

_DIGEST = digests.of(b"an image")
_NAME = Reference.parse("r.io/app:1")
_P256 = ec.generate_private_key(ec.SECP256R1())
_OTHER = ec.generate_private_key(ec.SECP256R1())
_KEYS: list[PrivateKey] = [
    _P256,
    ec.generate_private_key(ec.SECP384R1()),
    rsa.generate_private_key(65537, 2048),
    ed25519.Ed25519PrivateKey.generate(),
]


def signed_body(change: Callable[[dict[str, Any]], None]) -> Signed:
    body = json.loads(sign(_NAME, _DIGEST, _P256).payload)
    change(body)
    payload = json.dumps(body).encode()
    from cryptography.hazmat.primitives import hashes

    return Signed(payload, _P256.sign(payload, ec.ECDSA(hashes.SHA256())))


@pytest.mark.parametrize("number", range(len(_KEYS)))
def test_what_a_key_has_signed_is_verified_by_it_alone(number: int) -> None:
    key = _KEYS[number]
    signed = sign(_NAME, _DIGEST, key)
    found = verify(_DIGEST, [signed], [_OTHER.public_key(), key.public_key()])
    assert (found.digest, found.identity, found.key) == (_DIGEST, "r.io/app", 1)
    with pytest.raises(VerificationError, match="none of the keys"):
        verify(
            _DIGEST, [signed], [other.public_key() for other in (_OTHER, *_KEYS) if other != key]
        )


def test_the_document_is_cosigns() -> None:
    body = json.loads(sign(_NAME, _DIGEST, _P256).payload)
    assert body == {
        "critical": {
            "identity": {"docker-reference": "r.io/app"},
            "image": {"docker-manifest-digest": _DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    assert signature_tag(_DIGEST) == f"sha256-{_DIGEST[7:]}.sig"


def test_no_key_and_no_signature_prove_nothing() -> None:
    signed = sign(_NAME, _DIGEST, _P256)
    with pytest.raises(VerificationError, match="no key"):
        verify(_DIGEST, [signed], [])
    with pytest.raises(VerificationError, match="no signature"):
        verify(_DIGEST, [], [_P256.public_key()])


def test_a_changed_document_or_signature_is_refused() -> None:
    signed = sign(_NAME, _DIGEST, _P256)
    for place in range(0, len(signed.payload), 7):
        payload = bytearray(signed.payload)
        payload[place] ^= 1
        with pytest.raises(VerificationError):
            verify(_DIGEST, [Signed(bytes(payload), signed.signature)], [_P256.public_key()])
    for signature in (b"", b"x", signed.signature[:-1], bytes(70)):
        with pytest.raises(VerificationError):
            verify(_DIGEST, [Signed(signed.payload, signature)], [_P256.public_key()])


def _set(body: dict[str, Any], *path: str, value: Any) -> None:
    for name in path[:-1]:
        body = body[name]
    body[path[-1]] = value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda body: _set(
                body, "critical", "image", "docker-manifest-digest", value=digests.of(b"other")
            ),
            "another image",
        ),
        (lambda body: _set(body, "critical", "type", value="atomic"), "atomic"),
        (lambda body: _set(body, "critical", value=[]), "cannot be read"),
        (lambda body: _set(body, "critical", "image", value="x"), "cannot be read"),
    ],
)
def test_a_key_that_signed_something_else_has_not_signed_this(
    change: Callable[[dict[str, Any]], None], says: str
) -> None:
    with pytest.raises(VerificationError, match=says):
        verify(_DIGEST, [signed_body(change)], [_P256.public_key()])
    good = sign(_NAME, _DIGEST, _P256)
    assert verify(_DIGEST, [signed_body(change), good], [_P256.public_key()]).digest == _DIGEST


def test_what_the_signer_added_is_told() -> None:
    signed = signed_body(lambda body: _set(body, "optional", value={"commit": "abc"}))
    assert verify(_DIGEST, [signed], [_P256.public_key()]).optional == {"commit": "abc"}


def pem(path: Path, key: Any) -> Path:
    path.write_bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def test_keys_are_read_from_pem(tmp_path: Path) -> None:
    for key in _KEYS:
        assert read_public_key(pem(tmp_path / "key.pub", key.public_key())) == key.public_key()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (tmp_path / "key").write_bytes(private)
        assert read_private_key(tmp_path / "key").public_key() == key.public_key()
    weak = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(InvalidError, match="1024 bits"):
        read_public_key(pem(tmp_path / "weak.pub", weak))
    with pytest.raises(InvalidError, match="signs no images"):
        read_public_key(pem(tmp_path / "dsa.pub", dsa.generate_private_key(2048).public_key()))
    (tmp_path / "no").write_text("no key")
    for path in (tmp_path / "no", tmp_path / "missing"):
        with pytest.raises(InvalidError):
            read_public_key(path)
        with pytest.raises(InvalidError):
            read_private_key(path)


def with_client(registry: Registry, work: Callable[[RegistryClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with RegistryClient(Endpoints(), NoKeyring()) as client:
            return await work(client)

    return asyncio.run(run())


async def published(
    reference: Reference, digest: str, key: PrivateKey, client: RegistryClient
) -> Signed:
    signed = sign(reference, digest, key)
    await signatures.publish(client, reference, digest, signed)
    return signed


def test_signatures_stand_beside_their_image_one_after_another() -> None:
    with running_registry() as registry:
        reference = Reference.parse(f"{registry.host}/app:1")
        digest = registry.add_image("app", [b"layer"], "1")["digest"]
        found = with_client(registry, lambda c: signatures.fetch(c, reference, digest))
        assert found == []
        for key in (_P256, _OTHER):
            with_client(registry, partial(published, reference, digest, key))
        found = with_client(registry, lambda c: signatures.fetch(c, reference, digest))
        assert len(found) == 2
        for key in (_P256, _OTHER):
            assert verify(digest, found, [key.public_key()]).digest == digest
        # As cosign wrote it: the signature in an annotation, over the layer's bytes.
        tag = f"sha256-{digest[7:]}.sig"
        manifest = json.loads(registry.manifests["app", registry.tags["app", tag]][1])
        layer = manifest["layers"][0]
        assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
        assert base64.b64decode(layer["annotations"][ANNOTATION]) == found[0].signature
        assert registry.blobs[layer["digest"]] == found[0].payload


def test_a_registry_that_changes_a_signed_document_is_noticed() -> None:
    with running_registry() as registry:
        reference = Reference.parse(f"{registry.host}/app:1")
        digest = registry.add_image("app", [b"layer"], "1")["digest"]
        signed = with_client(registry, partial(published, reference, digest, _P256))
        registry.faults.tampered[digests.of(signed.payload)] = b"{}"
        with pytest.raises(VerificationError):
            with_client(registry, lambda c: signatures.fetch(c, reference, digest))
