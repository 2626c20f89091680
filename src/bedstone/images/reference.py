"""References: the names of images, as docker's users write them. Pure.

`python:3.12` means `docker.io/library/python:3.12`; the first part is a registry when it has a dot
or a colon, or is `localhost` (distribution/reference, "normalized names").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bedstone.errors import InvalidError
from bedstone.images import digests

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LIBRARY = "library"
_LONGEST = 255

# OCI distribution-spec 1.1, "Pulling manifests": <name> and <reference>.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry, a repository in it, and a tag, a digest or both.

    With both, the digest says what is meant; the tag is for people.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a name; without tag and digest, `latest` is meant.

        Raises:
            InvalidError: it is no reference; the message says which part is wrong.
        """
        rest, has_digest, digest = text.partition("@")
        if has_digest:
            digests.check(digest)
        # A colon after the last slash begins a tag; one before it, a port.
        head, slash, last = rest.rpartition("/")
        last, has_tag, tag = last.partition(":")
        if has_tag and not _TAG.match(tag):
            raise InvalidError(f"got tag {tag!r} in {text!r}, expected letters, digits, . _ -")
        registry, repository = _split(head + slash + last)
        if not _REGISTRY.match(registry):
            raise InvalidError(f"got registry {registry!r} in {text!r}, expected HOST or HOST:PORT")
        if not _REPOSITORY.match(repository) or len(registry) + len(repository) >= _LONGEST:
            raise InvalidError(
                f"got image {text!r}, expected [REGISTRY/]NAME[:TAG][@DIGEST]",
                hint="names are lower-case letters and digits, joined by . _ - and /",
            )
        if not has_tag and not has_digest:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag or None, digest or None)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def familiar(self) -> str:
        """The short form that means the same, as people write it."""
        text = str(self).removeprefix(f"{DEFAULT_REGISTRY}/")
        if text != str(self):
            short = text.removeprefix(f"{_LIBRARY}/")
            return short if "/" not in short else text
        return text

    def at(self, digest: str) -> Reference:
        """The same repository's content of that digest, without the tag."""
        return replace(self, tag=None, digest=digests.check(digest))

    def tagged(self, tag: str) -> Reference:
        """The same repository's content of that tag."""
        if not _TAG.match(tag):
            raise InvalidError(f"got tag {tag!r}, expected letters, digits, . _ -")
        return replace(self, tag=tag, digest=None)


def _split(name: str) -> tuple[str, str]:
    """A name's registry and its repository there."""
    first, slash, rest = name.partition("/")
    if not slash or not (any(mark in first for mark in ".:[") or first == "localhost"):
        registry, repository = DEFAULT_REGISTRY, name
    else:
        registry, repository = first, rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"{_LIBRARY}/{repository}"
    return registry, repository
