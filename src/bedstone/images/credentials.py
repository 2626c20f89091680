"""Credentials for registries, where docker's users keep them: `config.json` and its helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bedstone.errors import InvalidError, UnavailableError
from bedstone.images.reference import DEFAULT_REGISTRY

_DOCKER_HUB = "https://index.docker.io/v1/"
_HELPER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or a token that is exchanged for others (OAuth 2)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """For the header `Authorization` (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class Keyring(Protocol):
    """Knows credentials."""

    def find(self, registry: str) -> Credentials | None:
        """Those for a registry (`HOST[:PORT]`), or None. May block; raises `Error`s."""


class NoKeyring:
    """Knows none."""

    def find(self, registry: str) -> Credentials | None:  # noqa: ARG002 - the protocol's
        """None."""
        return None


class DockerKeyring:
    """Docker's `config.json`.

    Args:
        path: the file, which may be missing; by default `DOCKER_CONFIG/config.json` or
            `~/.docker/config.json`.
    """

    def __init__(self, path: Path | None = None) -> None:
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        self._path = path or folder / "config.json"

    def find(self, registry: str) -> Credentials | None:
        """Those for a registry; a helper that is configured is asked first.

        Raises:
            InvalidError: the file cannot be read or understood.
            UnavailableError: the helper fails.
        """
        config = self._read()
        key = _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry
        helpers = config.get("credHelpers") or {}
        helper = helpers.get(registry) or helpers.get(key) or config.get("credsStore")
        if helper:
            return _ask(str(helper), key)
        for name, entry in (config.get("auths") or {}).items():
            if name == key or _host(name) == registry:
                return self._decode(registry, entry)
        return None

    def _read(self) -> Mapping[str, Any]:
        try:
            config = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InvalidError(f"cannot read credentials in {self._path}: {error}") from error
        if not isinstance(config, dict):
            raise InvalidError(f"{self._path} has no object at its top")
        return config

    def _decode(self, registry: str, entry: Mapping[str, Any]) -> Credentials | None:
        token = str(entry.get("identitytoken") or "")
        if pair := entry.get("auth"):
            try:
                text = base64.b64decode(pair, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError, TypeError) as error:
                raise InvalidError(
                    f"{self._path}: auths.{registry}.auth is not base64 of USER:PASSWORD"
                ) from error
            username, _, password = text.rstrip("\0").partition(":")
        else:
            username, password = str(entry.get("username", "")), str(entry.get("password", ""))
        return Credentials(username, password, token) if username or token else None


def _host(name: str) -> str:
    """The registry that a key means: older clients wrote URLs."""
    return name.removeprefix("https://").removeprefix("http://").split("/")[0]


def _ask(helper: str, key: str) -> Credentials | None:
    """What docker-credential-HELPER says of a registry (docker-credential-helpers, "get")."""
    if "/" in helper:
        raise InvalidError(f"got credential helper {helper!r}, expected a name without slashes")
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(
            f"docker-credential-{helper}, which docker's config.json names, fails: {error}",
            hint="install it, or remove it from config.json",
        ) from error
    if done.returncode != 0:
        if b"not found" in done.stdout + done.stderr:
            return None
        raise UnavailableError(f"docker-credential-{helper} exits with {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"docker-credential-{helper} answers no credentials") from error
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret) if username else None
