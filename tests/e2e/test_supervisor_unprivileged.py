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
        "e2e/test_process_confinement.py",
        "e2e/test_supervisor_limits.py",
        "e2e/test_supervisor_runs.py",
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


_CONTAINER = """
import asyncio, socket, sys
from pathlib import Path
from bedstone.engines.postgres import PostgresEngine
from bedstone.errors import UnavailableError
from bedstone.processes.client import SupervisorClient, start_supervisor

async def main(state):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    run = await start_supervisor(state)
    async with SupervisorClient(run.socket) as client:
        try:
            await client.create_netns("x")
        except UnavailableError as error:
            print(error.hint)
        engine = PostgresEngine(
            state / "data/db", Path(run.run_dir), Path("postgres.log").absolute(), port
        )
        try:
            print((await engine.start(client)).applied, await engine.health() < 5)
        except UnavailableError as error:
            print(error.hint)
        await client.shutdown()

asyncio.run(main(Path(sys.argv[1], ".bedstone")))
"""


@pytest.mark.parametrize("closed", [False, True])
def test_root_in_a_container_that_may_not_mount_runs_the_database_or_says_why_not(
    folder: Path, *, closed: bool
) -> None:
    """Docker's default: uid 0 without CAP_SYS_ADMIN."""
    if shutil.which("setpriv") is None:
        pytest.skip("dropping one capability needs setpriv(1): apt install util-linux")
    folder.chmod(0o700 if closed else 0o755)
    project = folder / "project"
    project.mkdir(mode=0o755)
    result = subprocess.run(
        [
            *("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"),
            *(sys.executable, "-c", _CONTAINER, str(project)),
        ],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.stderr == ""
    refusal, database = result.stdout.splitlines()
    assert refusal == "run as root, with CAP_SYS_ADMIN, for enforced identities"
    if closed:
        assert "grant CAP_SYS_ADMIN" in database
        assert folder.stat().st_mode & 0o777 == 0o700, "what is not ours stays closed"
    else:
        assert database.startswith("('uid ")
        assert database.endswith("True")
