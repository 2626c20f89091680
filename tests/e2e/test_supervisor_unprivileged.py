"""The supervisor and the engines as an ordinary user, where the tests themselves run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534
_ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="these tests already run as an ordinary user: nothing to add"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Writable by the user, and below no directory that is closed to others."""
    path = Path(tempfile.mkdtemp(prefix="bedstone-user-"))
    os.chown(path, _NOBODY, _NOBODY)
    yield path
    shutil.rmtree(path)


def as_nobody(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # Through a shell, so that the program itself is looked up without root's rights.
    return subprocess.run(
        ["sh", "-c", 'exec "$@"', "sh", *argv],
        check=False,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture
def python(folder: Path) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{version}"):
        try:
            found = as_nobody(folder, candidate, "-c", "import bedstone.processes, pytest, psycopg")
        except OSError:
            continue
        if found.returncode == 0:
            return candidate
    pytest.skip(
        f"an ordinary user can't run {sys.executable}: put the environment below a directory that "
        f"others may enter, or install /usr/bin/python{version}"
    )


@pytest.mark.parametrize(
    "file",
    [
        "e2e/test_supervisor.py",
        "faults/test_process_kill.py",
        "e2e/test_engine_postgres.py",
        "e2e/test_engine_envoy.py",
    ],
)
def test_all_of_it_passes_as_an_ordinary_user(folder: Path, python: str, file: str) -> None:
    result = as_nobody(
        folder,
        python,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(_ROOT / "pyproject.toml")),
        *("--rootdir", str(_ROOT), f"--basetemp={folder / 'pytest'}", str(_ROOT / "tests" / file)),
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
