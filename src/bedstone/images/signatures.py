"""Signatures of images as cosign makes them (sigstore/cosign, specs/SIGNATURE_SPEC.md).

A signature is over a small JSON document (containers/image, "simple signing") that names the
digest of an image. It is a layer of the artifact with the tag `sha256-HEX.sig` in the image's own
repository, whose annotation holds the signature.

Rules: a key is what is trusted, and nothing else; no key verifies nothing; a document counts only
after its signature has been verified.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from bedstone.errors import InvalidError, NotFoundError, VerificationError
from bedstone.images import digests
from bedstone.images.models import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    dump,
    parse_manifest,
)
from bedstone.images.reference import Reference
from bedstone.images.registry import Document, RegistryClient

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
_PAYLOAD_BYTES = 64 << 10
_SIGNATURES = 64

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Signed:
    """A document and a signature of it; neither is believed yet."""

    payload: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """What a key has signed.

    Args:
        digest: of the image.
        identity: the name that the signer gave it; may be empty.
        optional: what the signer added.
        key: which of the keys it was, by its place.
    """

    digest: str
    identity: str
    optional: Mapping[str, Any]
    key: int


def read_public_key(path: Path) -> PublicKey:
    """A public key in PEM: ECDSA over P-256, P-384 or P-521, RSA of 2048 bits or more, Ed25519.

    Raises:
        InvalidError: it is none.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise InvalidError(f"cannot read key {path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(
            f"{path} is no public key in PEM", hint="cosign's is cosign.pub"
        ) from error
    match key:
        case rsa.RSAPublicKey() if key.key_size < 2048:
            raise InvalidError(
                f"{path} is an RSA key of {key.key_size} bits, expected 2048 or more"
            )
        case ec.EllipticCurvePublicKey() | rsa.RSAPublicKey() | ed25519.Ed25519PublicKey():
            return key
        case _:
            raise InvalidError(f"{path} is a key of a kind that signs no images")


def read_private_key(path: Path, password: bytes | None = None) -> PrivateKey:
    """A private key in PEM (PKCS 8), of the kinds of `read_public_key`. Raises InvalidError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except OSError as error:
        raise InvalidError(f"cannot read key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidError(
            f"{path} is no private key in PEM that can be read",
            hint="expected PKCS 8, as `openssl genpkey` writes it",
        ) from error
    match key:
        case ec.EllipticCurvePrivateKey() | rsa.RSAPrivateKey() | ed25519.Ed25519PrivateKey():
            return key
        case _:
            raise InvalidError(f"{path} is a key of a kind that signs no images")


def verify(digest: str, signed: Iterable[Signed], keys: Sequence[PublicKey]) -> Verified:
    """The first signature of an image that one of the keys has made.

    Raises:
        VerificationError: there is none, or no key.
    """
    wrong: list[str] = []
    for one in signed:
        # 1. The signature is by one of the keys, over the document as it came.
        place = next((n for n, key in enumerate(keys) if _by(key, one)), None)
        if place is None:
            wrong.append("a signature is by none of the keys")
            continue
        try:
            # 2. Only then the document is read, and 3. it speaks of this image.
            return _read(digest, one.payload, place)
        except VerificationError as error:
            wrong.append(error.message)
    said = "; ".join(dict.fromkeys(wrong)) or "it has no signature"
    if not keys:
        said = "no key was given"
    raise VerificationError(f"image {digest} is not signed by a known key: {said}")


def _by(key: PublicKey, signed: Signed) -> bool:
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signed.signature, signed.payload, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey():
                key.verify(signed.signature, signed.payload, padding.PKCS1v15(), hashes.SHA256())
            case ed25519.Ed25519PublicKey():
                key.verify(signed.signature, signed.payload)
    except InvalidSignature:
        return False
    return True


def _read(digest: str, payload: bytes, key: int) -> Verified:
    try:
        body = json.loads(payload)
        critical = body["critical"]
        kind, found = critical["type"], critical["image"]["docker-manifest-digest"]
        identity = critical["identity"]["docker-reference"]
        optional = body.get("optional") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError("a signed document cannot be read") from error
    if kind != _TYPE:
        raise VerificationError(f"a signed document is {kind!r}, expected {_TYPE!r}")
    if found != digest:
        raise VerificationError("a signed document speaks of another image")
    return Verified(digest, str(identity), dict(optional), key)


def signature_tag(digest: str) -> str:
    """The tag of an image's signatures. Raises InvalidError."""
    return "-".join(digests.parts(digest)) + ".sig"


async def fetch(client: RegistryClient, reference: Reference, digest: str) -> list[Signed]:
    """The signatures of an image at its registry; none if there are none.

    Raises:
        DeniedError, UnavailableError, InvalidError: as the client.
    """
    place = reference.tagged(signature_tag(digest))
    try:
        found = await client.document(place)
    except NotFoundError:
        return []
    document = parse_manifest(found.data, found.descriptor.media_type, str(place))
    if not isinstance(document, Manifest):
        raise InvalidError(f"{place} is an index, expected signatures")
    signed = []
    for layer in document.layers[:_SIGNATURES]:
        text = layer.annotations.get(ANNOTATION)
        if layer.media_type != PAYLOAD_TYPE or text is None:
            continue
        try:
            signature = base64.b64decode(text, validate=True)
        except binascii.Error:
            continue
        payload = await client.small_blob(place, layer, _PAYLOAD_BYTES)
        signed.append(Signed(payload, signature))
    return signed


def sign(reference: Reference, digest: str, key: PrivateKey) -> Signed:
    """Sign an image's digest, under a name."""
    body = {
        "critical": {
            "identity": {"docker-reference": reference.name},
            "image": {"docker-manifest-digest": digests.check(digest)},
            "type": _TYPE,
        },
        "optional": None,
    }
    payload = json.dumps(body, separators=(",", ":")).encode()
    match key:
        case ec.EllipticCurvePrivateKey():
            signature = key.sign(payload, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            signature = key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            signature = key.sign(payload)
    return Signed(payload, signature)


async def publish(
    client: RegistryClient, reference: Reference, digest: str, signed: Signed
) -> Reference:
    """Put a signature beside its image, with those that are there; where it is.

    Two that do this for one image at once may lose one of the signatures, as with cosign.
    """
    place = reference.tagged(signature_tag(digest))
    layers: list[Descriptor] = []
    try:
        found = await client.document(place)
        document = parse_manifest(found.data, found.descriptor.media_type, str(place))
        if isinstance(document, Manifest):
            layers = list(document.layers)
    except NotFoundError:
        pass
    layer = await _upload(client, place, signed.payload, PAYLOAD_TYPE)
    note = {ANNOTATION: base64.b64encode(signed.signature).decode()}
    layers.append(layer.model_copy(update={"annotations": note}))
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [one.digest for one in layers]},
    }
    described = await _upload(client, place, json.dumps(config).encode(), OCI_CONFIG)
    manifest = Manifest(config=described, layers=tuple(layers))
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **dump(manifest)}).encode()
    root = Descriptor(media_type=OCI_MANIFEST, digest=digests.of(data), size=len(data))
    await client.put_document(place, Document(data, root))
    return place


async def _upload(
    client: RegistryClient, place: Reference, data: bytes, media_type: str
) -> Descriptor:
    descriptor = Descriptor(media_type=media_type, digest=digests.of(data), size=len(data))

    async def read() -> Any:
        yield data

    if not await client.has_blob(place, descriptor.digest):
        await client.upload(place, descriptor, read)
    return descriptor
