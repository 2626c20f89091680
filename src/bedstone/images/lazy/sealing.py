"""Encrypted images: every part sealed by AES-256-GCM under a key of the image's own.

Rules:
- The image's key is random, made for one conversion, and kept only wrapped: by a key that a
  provider holds (`KeyProvider`; `file:/PATH` is one), named by reference and never copied.
- Each part has a subkey of its kind (HKDF-SHA256, RFC 5869), and its number for a nonce, which is
  used once, since the image's key is. Kind, number and the digest of the image's manifest are the
  associated data: no part can stand in for another, of the same image or of another one.
- What does not verify gives no plain byte.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bedstone.drivers import Kind
from bedstone.errors import DeniedError, InvalidError, NotFoundError, VerificationError

TAG = 16
"""Bytes by which a sealed part is longer."""
KEYS = "BEDSTONE_IMAGE_KEYS"
"""The variable with references of keys, separated by spaces, that images may be opened with."""
_BYTES = 32


class KeyProvider(Protocol):
    """Wraps the keys of images with one that it does not give away. Its calls may block.

    Built by `open(reference)`, which raises InvalidError or NotFoundError at once.
    """

    @property
    def id(self) -> str:
        """Says which key it is, and nothing about it; the same wherever the key is."""
        ...

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """A key that can be unwrapped with the same context only."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The key.

        Raises:
            VerificationError: it was wrapped by another key, for another context, or changed.
            UnavailableError: not now.
        """
        ...


KIND: Kind[KeyProvider] = Kind("image_keys", {"file": "bedstone.images.lazy.sealing:FileKey"})


def open_key(reference: str) -> KeyProvider:
    """The provider that a reference such as `file:/etc/keys/images` names; raises as its `open`."""
    scheme, colon, _ = reference.partition(":")
    if not colon:
        raise InvalidError(f"got key {reference!r}, expected a reference such as file:/PATH")
    provider: KeyProvider = KIND.load(scheme).open(reference)
    return provider


class FileKey:
    """`file:/PATH`: 32 bytes, in hexadecimal, in Base64 or as they are; only its owner reads it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, reference: str) -> Self:
        """Read the key."""
        path = Path(reference.removeprefix("file:"))
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(1024)
        except OSError as error:
            raise NotFoundError(f"cannot read key {path}: {error.strerror}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise InvalidError(f"others may read key {path}", hint=f"`chmod 600 {path}`")
        return cls(_key_of(data, path))

    @property
    def id(self) -> str:
        """Derived from the key by HKDF."""
        return _derive(self._key, b"id", 8).hex()

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See the protocol."""
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(_derive(self._key, b"wrap")).encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See the protocol."""
        try:
            return AESGCM(_derive(self._key, b"wrap")).decrypt(wrapped[:12], wrapped[12:], context)
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                f"the image's key cannot be unwrapped by key {self.id}: it was changed"
            ) from error


@dataclass(frozen=True, slots=True)
class Seal:
    """What an encrypted image says of its key.

    Attributes:
        key_id: of the key that wraps it.
        wrapped: the image's key.
        subject: the digest of the image's manifest.
    """

    key_id: str
    wrapped: bytes
    subject: str

    @classmethod
    def make(cls, provider: KeyProvider, subject: str) -> tuple[Seal, Cipher]:
        """A new key for an image, wrapped, and what seals with it."""
        key = secrets.token_bytes(_BYTES)
        seal = cls(provider.id, provider.wrap(key, subject.encode()), subject)
        return seal, Cipher(key, subject)

    def encode(self) -> str:
        """As a text; the subject is not in it, for it has to be known from elsewhere."""
        wrapped = base64.b64encode(self.wrapped).decode()
        return json.dumps({"cipher": "AES-256-GCM", "key": self.key_id, "wrapped": wrapped})

    @classmethod
    def decode(cls, text: str, subject: str) -> Seal:
        """The reverse of `encode`. Raises InvalidError."""
        try:
            found = json.loads(text)
            if found["cipher"] != "AES-256-GCM":
                raise InvalidError(f"the image is sealed by {found['cipher']!r}, which is unknown")
            wrapped = base64.b64decode(found["wrapped"], validate=True)
            return cls(str(found["key"]), wrapped, subject)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError(f"the image's seal cannot be read: {error}") from error

    def open(self, references: Sequence[str] | None = None) -> Cipher:
        """Unwrap the key.

        Args:
            references: of keys to look for; by default those of BEDSTONE_IMAGE_KEYS.

        Raises:
            DeniedError: the key that it was wrapped by is none of them.
            VerificationError: the wrapped key was changed, or is of another image.
            InvalidError, NotFoundError: a reference is wrong.
        """
        if references is None:
            references = os.environ.get(KEYS, "").split()
        for reference in references:
            provider = open_key(reference)
            if provider.id == self.key_id:
                return Cipher(provider.unwrap(self.wrapped, self.subject.encode()), self.subject)
        raise DeniedError(
            f"the image is encrypted with key {self.key_id}, which is not among those given",
            hint=f"name it in {KEYS}, as file:/PATH",
        )


class Cipher:
    """Seals and opens the parts of one image."""

    def __init__(self, key: bytes, subject: str) -> None:
        self._key, self._subject = key, subject
        self._ciphers: dict[str, AESGCM] = {}

    def seal(self, kind: str, number: int, data: bytes) -> bytes:
        """A part; never two of one kind and number."""
        cipher, nonce, about = self._of(kind, number)
        return cipher.encrypt(nonce, data, about)

    def open(self, kind: str, number: int, data: bytes) -> bytes:
        """The reverse.

        Raises:
            VerificationError: it is not the part of that kind and number of that image.
        """
        cipher, nonce, about = self._of(kind, number)
        try:
            return cipher.decrypt(nonce, data, about)
        except InvalidTag as error:
            raise VerificationError(f"an encrypted {kind} of the image was changed") from error

    def _of(self, kind: str, number: int) -> tuple[AESGCM, bytes, bytes]:
        cipher = self._ciphers.get(kind)
        if cipher is None:
            cipher = self._ciphers[kind] = AESGCM(_derive(self._key, kind.encode()))
        return cipher, number.to_bytes(12, "big"), f"{kind} {number} {self._subject}".encode()


def _derive(key: bytes, kind: bytes, length: int = _BYTES) -> bytes:
    return HKDF(SHA256(), length, None, b"bedstone image v1 " + kind).derive(key)


def _key_of(data: bytes, path: Path) -> bytes:
    if len(data) == _BYTES:
        return data
    text = data.strip()
    for decode in (binascii.unhexlify, lambda it: base64.b64decode(it, validate=True)):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == _BYTES:
            return bytes(key)
    raise InvalidError(
        f"{path} is no key", hint="`openssl rand -hex 32` makes one: 32 bytes in hexadecimal"
    )
