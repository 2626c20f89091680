"""Which run a command means, and how to reach it.

Rule: a directory given by `-C` comes before a server from the environment; a server given by option
comes before all.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.cli.terminal import asking
from bedstone.errors import InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from bedstone.client.api import Client
    from bedstone.client.transport import Endpoint
    from bedstone.processes.state import RunInfo

MANIFEST_NAME = "bedstone.yaml"
STATE_NAME = ".bedstone"


@dataclass(frozen=True, slots=True)
class Target:
    """The run that a command is about.

    Args:
        manifest: the manifest's file, if there is one.
        state_dir: the embedded run's state; None for a server elsewhere.
        url: a server elsewhere.
        token_file: where its token is; BEDSTONE_TOKEN otherwise.
        ca_file: the CA certificates to trust.
    """

    manifest: Path | None = None
    state_dir: Path | None = None
    url: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def choose(
        cls,
        directory: Path | None = None,
        server: str | None = None,
        token_file: Path | None = None,
        ca_file: Path | None = None,
    ) -> Target:
        """From the options and the environment; needs no run and no manifest yet."""
        if server and directory:
            raise InvalidError("both -C and --server are given", hint="keep one of the two")
        url = server or (None if directory else os.environ.get("BEDSTONE_URL"))
        root = nearest(directory or Path.cwd())
        manifest = root / MANIFEST_NAME if root and (root / MANIFEST_NAME).is_file() else None
        if url:
            authority = ca_file or _from_environment("BEDSTONE_CA")
            return cls(manifest, None, url, token_file, authority)
        return cls(manifest, root / STATE_NAME if root else None)

    @property
    def root(self) -> Path | None:
        """The app's directory."""
        return self.state_dir.parent if self.state_dir else None

    def state(self) -> Path:
        """The embedded run's state directory; NotFoundError where there is no app."""
        if self.url is not None:
            raise InvalidError(
                "this needs an app on this machine, not a server by URL",
                hint="unset BEDSTONE_URL, or give the app's directory with -C",
            )
        if self.state_dir is None:
            raise NotFoundError(
                f"there is no {MANIFEST_NAME} here or above",
                hint="go to the app's directory, name it with -C, or start one: `bedstone init`",
            )
        return self.state_dir

    def live(self) -> RunInfo | None:
        """The embedded run, if its supervisor is alive."""
        from bedstone.processes.state import live_run

        return live_run(self.state()) if self.url is None else None

    def endpoint(self) -> Endpoint:
        """Where the server is; UnavailableError if nothing runs here."""
        from bedstone.client.transport import Endpoint

        if self.url is not None:
            return Endpoint(url=self.url, token=self._token(), authority=self.ca_file)
        run = self.live()
        if run is None:
            root = self.state().parent
            raise UnavailableError(
                f"nothing runs for {named(root)}", hint=f"start it with `bedstone up{at(root)}`"
            )
        return Endpoint(socket=Path(run.run_dir, "api.sock"))

    @asynccontextmanager
    async def connect(self, waiting: str = "asking the server") -> AsyncIterator[Client]:
        """A client of the run's server; `waiting` tells a person what its first answer takes."""
        endpoint = self.endpoint()
        with asking(waiting):
            from bedstone.client.api import Client

            async with Client(endpoint) as client:
                yield client

    def _token(self) -> str | None:
        if self.token_file is None:
            return os.environ.get("BEDSTONE_TOKEN") or None
        try:
            token = self.token_file.read_text().strip()
        except OSError as error:
            raise InvalidError(
                f"cannot read the token in {self.token_file}: {error.strerror}",
                hint="`bedstone token create NAME > FILE` makes one",
            ) from error
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidError(f"{self.token_file} does not contain one token on one line")
        return token


async def choose_app(client: Client, target: Target, named: str | None) -> str:
    """The app that is meant: the one named, the only one, or the manifest's."""
    if named:
        return named
    apps = [app.app for app in (await client.status()).apps]
    if len(apps) == 1:
        return apps[0]
    if target.manifest is not None:
        from bedstone.model.manifest import load_manifest

        return load_manifest(target.manifest).spec.app
    if not apps:
        raise NotFoundError("no app is applied", hint="apply one with `bedstone apply -f FILE`")
    raise InvalidError(f"the server runs {', '.join(apps)}", hint="name one with --app")


def nearest(start: Path) -> Path | None:
    """The nearest directory upwards with a manifest, or with the state of a run that lives."""
    start = start.resolve()
    for folder in (start, *start.parents):
        places = (folder / MANIFEST_NAME, folder / STATE_NAME / "run.json")
        if any(map(os.path.isfile, places)):  # False too where it may not be looked at
            return folder
    return None


def shown(path: Path) -> str:
    """A path as people would write it from here."""
    here = Path.cwd()
    if path == here:
        return "."
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def named(root: Path) -> str:
    """An app's directory in a sentence; the current one by its own name."""
    return root.name or str(root) if root == Path.cwd() else shown(root)


def at(root: Path, option: str = "") -> str:
    """What to add to a command for it to find this app from the current directory."""
    if nearest(Path.cwd()) == root:
        return ""
    return f" {option} {shown(root)}" if option else f" {shown(root)}"


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
