"""Which image of an index runs here. Pure, but for `host`."""

from __future__ import annotations

import platform as host_platform
import sys
from collections.abc import Iterable

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images.models import Descriptor, Index, Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}
_ALIASES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386"}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def host() -> Platform:
    """This machine's platform."""
    machine = host_platform.machine()
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os=sys.platform, architecture=architecture, variant=variant)


def parse(text: str) -> Platform:
    """A platform as people write it: `linux/arm64`, `linux/arm/v7`, `arm64`.

    Raises:
        InvalidError: it is none.
    """
    words = text.lower().split("/")
    if len(words) == 1:
        words = [sys.platform, *words]
    if len(words) > 3 or not all(words):
        raise InvalidError(f"got platform {text!r}, expected OS/ARCHITECTURE[/VARIANT]")
    architecture = _ALIASES.get(words[1], words[1])
    return Platform(
        os=words[0], architecture=architecture, variant=words[2] if len(words) == 3 else ""
    )


def _level(platform: Platform) -> int:
    """A variant as a number: what runs `v3` runs `v2` too."""
    variant = platform.variant or _DEFAULT_VARIANT.get(platform.architecture, "v0")
    digits = variant.removeprefix("v").split(".")[0]
    return int(digits) if digits.isdecimal() else -1


def rank(wanted: Platform, offered: Platform) -> int | None:
    """How well an image fits, the most the best; None if it does not run there."""
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    if not same:
        return None
    limit, level = _level(wanted), _level(offered)
    return level if 0 <= level <= limit else None


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The image of an index for a platform; the first of those that fit equally well.

    Raises:
        NotFoundError: there is none; the message names those that there are.
    """
    best: tuple[int, Descriptor] | None = None
    for descriptor in index.manifests:
        offered = descriptor.platform
        if offered is None:
            # An index of one image need not say what it is for: its config does.
            score = 0 if len(index.manifests) == 1 else None
        else:
            score = rank(wanted, offered)
        if score is not None and (best is None or score > best[0]):
            best = score, descriptor
    if best is None:
        raise NotFoundError(
            f"{what} has no image for {wanted}, only for {', '.join(names(index)) or 'none'}",
            hint="choose one with --platform",
        )
    return best[1]


def names(index: Index) -> list[str]:
    """The platforms of an index that are some: `unknown/unknown` marks attestations."""
    return _unique(
        str(d.platform) for d in index.manifests if d.platform and d.platform.os != "unknown"
    )


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
