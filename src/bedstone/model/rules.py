"""What spans the parts of a manifest: names, routes, references, directories.

The rules look at the plain data, not at an `AppSpec`, so that they also find what is wrong in a
manifest whose shape is wrong elsewhere; a part of the wrong shape is passed over here.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bedstone.errors import InvalidError
from bedstone.model.interpolation import references
from bedstone.model.positions import Document, Location, Problem, format_location

RESERVED_APPS: Final = frozenset({"node", "server"})
RESERVED_NAMES: Final = frozenset({"gateway", "operator"})
RESERVED_PREFIX: Final = "bedstone"
_RESERVED_VARIABLE_PREFIX: Final = "BEDSTONE_"
_FREE_VARIABLES: Final = frozenset({"BEDSTONE_BROKER_URL"})
"""Those that nothing here sets yet, and libraries of ours read."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_BOXES: Final = ("container", "gvisor", "microvm")
_NOT_WITH_IMAGE: Final = {
    "run": (
        "it has programs of its own, and not what serves an ASGI app here",
        "start the server that is in the image with command",
    ),
    "path": ("its files are its own, and none of this machine are added", "remove it"),
    "python": ("its interpreter is its own", "remove it"),
    "warm": ("nothing is forked into it", "remove it"),
}
_SCHEMES: Final = ("postgres://", "postgresql://")


def url_variable(name: str) -> str:
    """The environment variable in which a workload finds another, or a database, by its URL.

    Names have no underscore, so that no two of them share a variable.
    """
    return name.upper().replace("-", "_") + "_URL"


def check_rules(document: Document, environ: Mapping[str, str] | None) -> list[Problem]:
    """The mistakes that span parts.

    Args:
        document: the manifest.
        environ: the variables that `${env.NAME}` may use; None leaves them unchecked.
    """
    rules = Rules(document, environ)
    return [
        *rules.names(),
        *rules.gateway(),
        *(problem for name in rules.workloads for problem in rules.workload(name)),
        *(problem for name in rules.databases for problem in rules.database(name)),
        *rules.transactions(),
    ]


def check_files(document: Document, root: Path) -> list[Problem]:
    """The directories that the manifest names but that are not below its own.

    Args:
        document: the manifest.
        root: the directory of the manifest.
    """
    problems = []
    base = root.resolve()
    for name, workload in mappings_of(mapping_of(document.data), "workloads").items():
        location: Location = ("workloads", name, "path")
        path = workload.get("path")
        if not isinstance(path, str):
            continue
        try:
            directory = (base / path).resolve()
            inside = directory.is_relative_to(base)
            exists = directory.is_dir()
        except (OSError, ValueError):
            inside, exists = True, False
        if not inside:
            message = f"got {path!r}, expected a directory inside {base.name or base}"
            hint = "move the source below the manifest"
        elif not exists:
            message = f"there is no directory {path!r} beside the manifest"
            hint = "create it, or correct the path"
        else:
            continue
        problems.append(Problem(document.position(location), message, hint, location))
    return problems


class Rules:
    """The rules over one manifest."""

    def __init__(self, document: Document, environ: Mapping[str, str] | None) -> None:
        self._document = document
        self._environ = environ
        self.data = mapping_of(document.data)
        self.workloads = mappings_of(self.data, "workloads")
        self.databases = mappings_of(self.data, "databases")

    def problem(self, location: Location, message: str, hint: str | None = None) -> Problem:
        """A mistake in a value."""
        return Problem(self._document.position(location), message, hint, location)

    def key_problem(self, location: Location, message: str, hint: str | None = None) -> Problem:
        """A mistake in what a key stands for."""
        return Problem(self._document.key_position(location), message, hint, location)

    def names(self) -> Iterator[Problem]:
        """Reserved names, and a name that is both a workload's and a database's."""
        app = self.data.get("app")
        if isinstance(app, str) and app in RESERVED_APPS:
            yield self.problem(("app",), f"the app name {app!r} is reserved", "choose another")
        for name in self.workloads:
            if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIX):
                yield self.key_problem(
                    ("workloads", name), f"the workload name {name!r} is reserved", "choose another"
                )
        for name in self.databases:
            if name in self.workloads:
                first = self._document.key_position(("workloads", name))
                yield self.key_problem(
                    ("databases", name),
                    f"{name!r} is also a workload, at {first}: both would be {url_variable(name)}",
                    "rename one of the two",
                )

    def gateway(self) -> Iterator[Problem]:
        """Routes that go nowhere or twice, and where the gateway listens."""
        gateway = mapping_of(self.data.get("gateway"))
        address = gateway.get("address")
        if isinstance(address, str) and not _is_address(address):
            yield self.problem(
                ("gateway", "address"),
                f"got {address!r}, expected an IP address",
                "127.0.0.1 is this machine only, 0.0.0.0 any interface",
            )
        seen: dict[tuple[str, str], Location] = {}
        for index, item in enumerate(list_of(gateway.get("routes"))):
            route = mapping_of(item)
            location: Location = ("gateway", "routes", index)
            target, host, path = route.get("to"), route.get("host", ""), route.get("path", "/")
            if isinstance(target, str) and target not in self.workloads:
                yield self.unknown((*location, "to"), target, self.workloads, "a workload")
            if isinstance(host, str) and host and not _HOST.fullmatch(host):
                yield self.problem(
                    (*location, "host"),
                    f"got {host!r}, expected a host name in lower case, such as api.example.org",
                )
            if not isinstance(host, str) or not isinstance(path, str):
                continue
            first = seen.setdefault((host, path), location)
            if first is not location:
                where = self._document.position(first)
                yield self.problem(
                    location,
                    f"duplicate route {host}{path}, first given at {where}",
                    "keep one of the two",
                )

    def workload(self, name: str) -> Iterator[Problem]:
        """How one workload is run and what it may reach."""
        workload = self.workloads[name]
        location: Location = ("workloads", name)
        ways = [key for key in ("run", "command", "image") if key in workload]
        if not ways and isinstance(mapping_of(self.data["workloads"])[name], dict):
            yield self.key_problem(
                location,
                f"workload {name!r} has none of run, command and image, expected one of them",
                "write run: module:attribute, or command: [program, argument]",
            )
        if "run" in ways and "command" in ways:
            yield self.key_problem(
                (*location, "command"),
                f"workload {name!r} has both run and command, expected one of them",
                "keep one of the two",
            )
        protocol = workload.get("protocol")
        if "run" in ways and protocol in ("http2", "grpc"):
            yield self.problem(
                (*location, "protocol"),
                f"got protocol {protocol} with run, expected http: an ASGI app is served over "
                "HTTP/1.1",
                "remove it, or start your own server with command",
            )
        program = next(iter(list_of(workload.get("command"))), None)
        if "warm" in workload and program not in (None, "python", "python3"):
            yield self.key_problem(
                (*location, "warm"),
                f"got warm with the command {program!r}, expected run, or a command of python",
                "remove it, or start the program with python",
            )
        yield from self._isolation(name, workload)
        yield from self._uses(name, workload)
        yield from self._env(name, workload)
        for index, word in enumerate(list_of(workload.get("command"))):
            if word == "" and index == 0:
                yield self.problem((*location, "command", 0), "got '', expected a program")

    def _isolation(self, name: str, workload: Mapping[str, Any]) -> Iterator[Problem]:
        """What a workload in a box cannot be, and one of an image."""
        location: Location = ("workloads", name)
        isolation = workload.get("isolation")
        if "warm" in workload and isolation in _BOXES:
            yield self.key_problem(
                (*location, "warm"),
                f"got warm with isolation {isolation}, expected process: a box has a kernel's "
                "namespaces of its own, into which nothing is forked",
                "remove one of the two",
            )
        if workload.get("writes") and (isolation in _BOXES or "image" in workload):
            yield self.key_problem(
                (*location, "writes"),
                "got writes for a box, expected isolation process: a box has files of its own",
                "remove one of the two",
            )
        if "image" not in workload:
            return
        if isolation == "process":
            yield self.problem(
                (*location, "isolation"),
                "got isolation process with an image, expected container, gvisor or microvm",
                "remove it, and the image is run in a container",
            )
        for key, (reason, hint) in _NOT_WITH_IMAGE.items():
            if key in workload:
                yield self.key_problem((*location, key), f"got {key} with an image: {reason}", hint)

    def _uses(self, name: str, workload: Mapping[str, Any]) -> Iterator[Problem]:
        seen: set[str] = set()
        for index, used in enumerate(list_of(workload.get("uses"))):
            location: Location = ("workloads", name, "uses", index)
            if not isinstance(used, str):
                continue
            if used == name:
                yield self.problem(
                    location, f"workload {name!r} uses itself", "remove it from uses"
                )
            elif used in seen:
                yield self.problem(location, f"{used!r} is in uses twice", "remove one")
            elif used not in self.workloads and used not in self.databases:
                known = [other for other in self._known() if other != name]
                yield self.unknown(location, used, known, "a workload or a database")
            seen.add(used)

    def _known(self) -> list[str]:
        return [*self.workloads, *self.databases]

    def _env(self, name: str, workload: Mapping[str, Any]) -> Iterator[Problem]:
        uses = list_of(workload.get("uses"))
        for variable, value in mapping_of(workload.get("env")).items():
            location: Location = ("workloads", name, "env", variable)
            if not _VARIABLE.fullmatch(variable):
                yield self.key_problem(
                    location,
                    f"got the variable {variable!r}, expected letters, digits and underscores",
                )
            elif variable == "PORT" or (
                variable.startswith(_RESERVED_VARIABLE_PREFIX) and variable not in _FREE_VARIABLES
            ):
                yield self.key_problem(
                    location, f"the variable {variable} is set by Bedstone", "remove it"
                )
            if isinstance(value, str):
                yield from self.check_references(location, value, uses)

    def transactions(self) -> Iterator[Problem]:
        """Where the transaction log is."""
        name = mapping_of(self.data.get("transactions")).get("database")
        if isinstance(name, str) and name not in self.databases:
            yield self.unknown(("transactions", "database"), name, self.databases, "a database")

    def database(self, name: str) -> Iterator[Problem]:
        """Where a database is."""
        location: Location = ("databases", name, "url")
        url = self.databases[name].get("url")
        if not isinstance(url, str):
            return
        if not url.startswith((*_SCHEMES, "${env.")):
            scheme = url.partition("://")[0] if "://" in url else "no scheme"
            yield self.problem(
                location, f"got a URL with {scheme}, expected postgres://USER:PASSWORD@HOST/NAME"
            )
        yield from self.check_references(location, url, None)

    def check_references(
        self, location: Location, text: str, uses: Iterable[Any] | None
    ) -> Iterator[Problem]:
        """References that cannot be resolved; `uses` None means that databases cannot be named."""
        try:
            found = references(text)
        except InvalidError as error:
            yield self.problem(location, error.message, error.hint)
            return
        for reference in found:
            name = reference.name
            if reference.scope == "env":
                unset = self._environ is not None and name not in self._environ
                if unset and reference.default is None:
                    yield self.problem(
                        location,
                        f"the environment variable {name} is not set, expected by {reference.text}",
                        f"set it, or write ${{env.{name}:-default}}",
                    )
            elif uses is None:
                yield self.problem(
                    location, f"got {reference.text}, expected references to env only"
                )
            elif name not in self.databases:
                yield self.unknown(location, name, self.databases, "a database")
            elif name not in uses:
                yield self.problem(
                    location,
                    f"{reference.text} is of a database that the workload does not use",
                    f"add {name} to {format_location((*location[:2], 'uses'))}",
                )

    def unknown(self, location: Location, name: str, known: Iterable[str], what: str) -> Problem:
        """A name that nothing has."""
        names = list(known)
        message = f"got {name!r}, expected {what}"
        message += f": {', '.join(names)}" if names else ", but there is none"
        near = difflib.get_close_matches(name, names, 1, 0.6)
        return self.problem(location, message, f"did you mean {near[0]!r}?" if near else None)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def mapping_of(value: Any) -> dict[str, Any]:
    """A mapping; anything else counts as an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """A list; anything else counts as an empty one."""
    return value if isinstance(value, list) else []


def mappings_of(data: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The entries of a mapping of mappings; an entry of another shape counts as empty."""
    return {name: mapping_of(value) for name, value in mapping_of(data.get(key)).items()}
