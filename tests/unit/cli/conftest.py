"""An app's directory with a run that seems to live, whose server is a fake."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bedstone.cli.main import run as run_command
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.state import RunInfo, locked, write_run
from bedstone.testing.api import Answer, FakeApi, serve_fake_api
from bedstone.testing.samples import DOMAIN

MANIFEST = """\
app: bank
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web:
    run: web:app
    uses: [risk]
  risk:
    command: [python, risk.py]
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command in this process."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        status = run_command(arguments)
        out, err = capsys.readouterr()
        return Ended(status, out, err)

    return run


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without a manifest, with nothing of the caller's environment."""
    for name in ("BEDSTONE_URL", "BEDSTONE_TOKEN", "BEDSTONE_CA", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def app(empty: Path) -> Path:
    """A directory with a manifest; nothing runs."""
    (empty / "bedstone.yaml").write_text(MANIFEST)
    (empty / "web.py").write_text("app = None\n")
    (empty / "risk.py").write_text("pass\n")
    return empty


@pytest.fixture
def running(app: Path) -> Iterator[FakeApi]:
    """The same, with a run: a process that does nothing stands for its supervisor."""
    state = app / ".bedstone"
    state.mkdir()
    with (
        subprocess.Popen(["sleep", "600"]) as supervisor,
        locked(state),
        tempfile.TemporaryDirectory(prefix="bst-") as folder,
    ):
        identity = ProcessIdentity.of(supervisor.pid)
        assert identity is not None
        write_run(
            RunInfo(
                run_id="r1",
                pid=identity.pid,
                start_time=identity.start_time,
                boot_id=identity.boot_id,
                state_dir=str(state),
                run_dir=folder,
                socket=str(Path(folder, "supervisor.sock")),
                started_at=time.time(),
            )
        )
        with serve_fake_api(Path(folder, "api.sock")) as fake:
            yield fake
        supervisor.kill()


@pytest.fixture
def server(running: FakeApi) -> FakeApi:
    """A fake server that has an app."""
    running.answers["GET /v1/status"] = Answer(DOMAIN)
    return running
