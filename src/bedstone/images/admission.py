"""Which images may be fetched and run here: a policy of names and keys, default deny.

The policy is `image-policy.yaml` beside the store. Without that file, everything is admitted; with
it, the first rule that matches a name decides, and what none matches is refused:

```yaml
images:
  - {match: "ghcr.io/acme/*", signed_by: [acme.pub]}      # one of these keys, files beside it
  - {match: "docker.io/library/*", unsigned: true}        # by its name alone
```

`unsigned` trusts the registry of that name, and whoever may load files into the store.

It is enforced before anything of an image is fetched, and again before it is unpacked to be run,
by the signatures that were kept then.
"""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bedstone.errors import DeniedError, InvalidError, VerificationError
from bedstone.images import digests
from bedstone.images.models import Descriptor
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore

if TYPE_CHECKING:
    from bedstone.images.registry import RegistryClient
    from bedstone.images.signatures import PublicKey, Signed, Verified

KIND = "signatures"
"""Of the attachment that keeps an image's signatures."""
_TYPE = "application/vnd.bedstone.image.signatures.v1+json"
_FILE = "image-policy.yaml"


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    match: str = Field(min_length=1)
    signed_by: list[str] | None = Field(default=None, min_length=1)
    unsigned: bool = False

    @model_validator(mode="after")
    def _one(self) -> _Rule:
        if (self.signed_by is None) is not self.unsigned:
            raise ValueError("expected signed_by, or unsigned: true")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: list[_Rule]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a pattern of registry and repository, in which `*` is any text, and its keys.

    Args:
        match: the pattern.
        keys: each with the name of its file; one of them must have signed. None admits unsigned.
    """

    match: str
    keys: tuple[tuple[str, PublicKey], ...] | None


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in order."""

    path: Path
    rules: tuple[Rule, ...]

    def admit(self, reference: Reference, digest: str, signed: Sequence[Signed]) -> Verified | None:
        """Who signed an image that may be run, or None if nobody needs to.

        Raises:
            DeniedError: no rule is for its name.
            VerificationError: none of the rule's keys has signed it.
        """
        from bedstone.images.signatures import verify

        for rule in self.rules:
            if not fnmatch.fnmatchcase(reference.name, rule.match):
                continue
            if rule.keys is None:
                return None
            try:
                return verify(digest, signed, [key for _, key in rule.keys])
            except VerificationError as error:
                names = ", ".join(name for name, _ in rule.keys)
                raise VerificationError(
                    f"{reference.familiar}: {error.message}",
                    hint=f"{self.path} demands for {rule.match!r} a signature by {names}",
                ) from error
        raise DeniedError(
            f"{reference.familiar} is admitted by no rule", hint=f"add one for it to {self.path}"
        )


def read_policy(store: ContentStore) -> Policy | None:
    """The policy beside a store; None without one.

    Raises:
        InvalidError: the policy or a key that it names cannot be read.
    """
    import yaml

    path = store.root.parent / _FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        # Not to be able to read it is no reason to do without.
        raise InvalidError(f"cannot read {path}: {error.strerror}") from error
    try:
        body = _File.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidError(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidError(f"{path}: {place}: {first['msg'].lower()}") from error
    return Policy(path, tuple(_rule(path, rule) for rule in body.images))


def _rule(path: Path, rule: _Rule) -> Rule:
    from bedstone.images.signatures import read_public_key

    if rule.signed_by is None:
        return Rule(rule.match, None)
    keys = tuple((name, read_public_key(path.parent / name)) for name in rule.signed_by)
    return Rule(rule.match, keys)


async def admit_remote(
    policy: Policy, client: RegistryClient, reference: Reference, digest: str
) -> list[Signed]:
    """Admit an image at its registry, by its signatures there, which are returned.

    Raises:
        DeniedError, VerificationError: as `Policy.admit`.
        UnavailableError, InvalidError: as the client.
    """
    from bedstone.images.signatures import fetch

    signed = await fetch(client, reference, digest)
    policy.admit(reference, digest, signed)
    return signed


def keep(store: ContentStore, digest: str, signed: Sequence[Signed]) -> None:
    """Keep the signatures of an image with it, durably. Raises as the store."""
    body = {
        "signatures": [
            {"payload": _encode(one.payload), "signature": _encode(one.signature)} for one in signed
        ]
    }
    data = json.dumps(body).encode()
    with store.lease(f"signatures-{digest}", seconds=60.0) as lease:
        lease.add(digests.of(data))
        descriptor = Descriptor(media_type=_TYPE, digest=store.put(data), size=len(data))
        store.attach(digest, KIND, descriptor)


def admit(store: ContentStore, reference: Reference, digest: str) -> Verified | None:
    """Admit an image of the store to be run, by the policy beside it.

    Raises:
        DeniedError, VerificationError: as `Policy.admit`.
        InvalidError: the policy cannot be read.
    """
    policy = read_policy(store)
    if policy is None:
        return None
    return policy.admit(reference, digest, kept(store, digest))


def kept(store: ContentStore, digest: str) -> list[Signed]:
    """The signatures that were kept. Raises VerificationError: they are damaged."""
    from bedstone.images.signatures import Signed

    descriptor = store.attached(digest).get(KIND)
    if descriptor is None:
        return []
    try:
        records: list[dict[str, Any]] = json.loads(store.read(descriptor.digest))["signatures"]
        return [
            Signed(base64.b64decode(one["payload"]), base64.b64decode(one["signature"]))
            for one in records
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"the signatures kept for {digest} cannot be read") from error


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
