"""Transcripts of the command line: each file holds a command and exactly what it shows.

`BEDSTONE_GOLDEN=write pytest tests/golden/test_cli_golden.py` writes them anew: read what changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bedstone.cli.main import COMMANDS, cli
from bedstone.cli.main import run as run_command
from bedstone.cli.progress import Shown, news
from bedstone.cli.ps import overview
from bedstone.cli.up import Options
from bedstone.cli.welcome import welcome
from bedstone.model.api import ApplyResult, AppStatus, Change, DomainStatus, Part
from bedstone.model.manifest import parse_manifest
from bedstone.model.resources import Condition
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import ProcessInfo
from bedstone.processes.state import RunInfo, write_run
from bedstone.testing.api import Answer, FakeApi, serve_fake_api

FOLDER = Path(__file__).parent / "cli"
MISTAKES = """\
app: Bank
gateway:
  port: 80800
  routes:
    - {path: /, to: wep}
workloads:
  web:
    run: web:app
    replica: 2
    uses: [ledger]
  risk:
    command: python risk.py
cells:
  shards: 100
"""
GATEWAY = """\
app: bank
gateway: {port: 8080, routes: [{path: /api, to: web}]}
workloads:
  web: {run: "web:app"}
"""
MANIFEST = """\
app: bank
workloads:
  web: {run: "web:app"}
"""


def compare(name: str, text: str) -> None:
    text = click.unstyle(text)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("BEDSTONE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"see the docstring of {Path(__file__).name}"


def transcript(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """A command as a shell shows it, with its exit status where it is not 0."""
    capsys.readouterr()
    status = run_command(arguments)
    out, err = capsys.readouterr()
    lines = f"$ bedstone {' '.join(arguments)}\n{out}{err}"
    return f"{lines}[exit status {status}]\n" if status else lines


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BEDSTONE_URL", "BEDSTONE_TOKEN", "BEDSTONE_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    app = tmp_path / "bank"
    app.mkdir()
    monkeypatch.chdir(app)
    return app


@pytest.fixture
def server(directory: Path) -> Iterator[FakeApi]:
    (directory / "bedstone.yaml").write_text(MANIFEST)
    (directory / ".bedstone").mkdir()
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    with tempfile.TemporaryDirectory(prefix="bst-") as folder:
        run = RunInfo(
            "r1",
            identity.pid,
            identity.start_time,
            identity.boot_id,
            str(directory / ".bedstone"),
            folder,
            f"{folder}/supervisor.sock",
            0.0,
        )
        write_run(run)
        with serve_fake_api(Path(folder, "api.sock")) as fake:
            yield fake


def every_command() -> list[tuple[str, ...]]:
    context = click.Context(cli)
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, below) for below in command.list_commands(click.Context(command))]
    return found


@pytest.mark.parametrize("words", every_command(), ids=lambda words: "-".join(words) or "bedstone")
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = transcript(capsys, *words, "--help")
    assert "Examples:\n" in text
    compare("-".join(("help", *words)), text)


def instance(name: str, workload: str, state: str, detail: str = "", **more: object) -> Part:
    pid, since, restarts = more.get("pid"), more.get("since"), more.get("restarts", 0)
    return Part(
        kind="instance",
        name=name,
        state=state,
        detail=detail,
        workload=workload,
        revision=name.split("-")[1],
        pid=pid if isinstance(pid, int) else None,
        since=since if isinstance(since, float) else None,
        restarts=restarts if isinstance(restarts, int) else 0,
    )


BEGUN = AppStatus(
    app="bank",
    generation=1,
    ready=False,
    gateway="http://localhost:8080",
    waiting_for=("proxy local", "instance web-1a2b3c4d-0"),
    parts=(
        Part(kind="proxy", name="local", state="starting", detail="connecting"),
        Part(kind="engine", name="ledger", state="pending"),
        instance("web-1a2b3c4d-0", "web", "pending", "waiting for its proxy"),
    ),
)
TROUBLE = BEGUN.model_copy(
    update={
        "waiting_for": ("instance web-1a2b3c4d-0",),
        "parts": (
            Part(kind="proxy", name="local", state="ready", pid=110),
            Part(
                kind="engine",
                name="ledger",
                state="ready",
                detail="postgres at 127.0.0.1:21000",
                pid=111,
                since=1000.0,
            ),
            Part(kind="certificate", name="web", state="ready"),
            instance(
                "web-1a2b3c4d-0",
                "web",
                "backoff",
                "exit status 2\nstarting\nerror: web.py:1:1: no module named nothing\nhint: fix it",
                restarts=3,
            ),
            Part(kind="route", name="/ → web", state="pending", detail="web has no ready instance"),
        ),
        "conditions": (
            Condition(
                app="bank",
                subject="gateway",
                message="port 8080 is taken",
                hint="choose another with gateway.port",
            ),
        ),
    }
)
READY = TROUBLE.model_copy(
    update={
        "ready": True,
        "enforced": True,
        "waiting_for": (),
        "conditions": (),
        "parts": (
            *TROUBLE.parts[:3],
            instance("web-1a2b3c4d-0", "web", "ready", pid=112, since=1090.0, restarts=3),
            Part(kind="route", name="/ → web", state="ready"),
        ),
    }
)
ROLLED = READY.model_copy(
    update={
        "generation": 2,
        "parts": (
            *READY.parts[:3],
            instance("web-5e6f7a8b-0", "web", "ready", pid=113, since=1099.0),
            READY.parts[4],
        ),
    }
)


AS_ROOT = READY.model_copy(
    update={
        "enforced": False,
        "parts": tuple(
            instance(name, name.split("-")[0], "ready", pid=100).model_copy(
                update={"shared_user": why, "enforced": not why}
            )
            for name, why in (
                ("accounts-1a2b3c4d-0", "as root, since /root is not open to others"),
                ("accounts-1a2b3c4d-1", "as root, since /root is not open to others"),
                ("web-1a2b3c4d-0", "as root, since /root is not open to others"),
                (
                    "risk-1a2b3c4d-0",
                    "as the owner of its code, since risk.py is not open to others",
                ),
                ("ledger-1a2b3c4d-0", ""),
            )
        ),
    }
)


def domain(*apps: AppStatus, complete: bool = True) -> DomainStatus:
    return DomainStatus(
        domain="d", version="0.1.0", started_at=0.0, complete=complete, apps=tuple(apps)
    )


def test_progress() -> None:
    """From nothing to trouble, out of it, and through a roll-out."""
    shown: Shown = {}
    text = ""
    for status in (BEGUN, TROUBLE, READY, BEGUN, READY, ROLLED):
        lines, shown = news(shown, status)
        text += "".join(f"{line.text('0.0s')}\n" for line in lines) or "(no news)\n"
        text += "--\n"
    compare("progress", text)


def test_ps() -> None:
    processes = [
        ProcessInfo("server", "running", "", pid=101, restarts=1),
        ProcessInfo("node", "exited", "", exit_signal=9),
    ]
    lines: list[str] = []
    for status in (domain(READY), domain(TROUBLE, complete=False), domain(AS_ROOT)):
        lines += [*overview(status, processes, 1100.0), "--"]
    lines += overview(domain(), [], 1100.0)
    compare("ps", "\n".join(lines) + "\n")


def test_welcome(directory: Path) -> None:
    (directory / "bedstone.yaml").write_text(GATEWAY)
    manifest = parse_manifest(GATEWAY, root=directory)
    text = ""
    for detach, watch, started, api in (
        (False, True, True, None),
        (False, False, False, None),
        (True, False, True, "127.0.0.1:8443"),
    ):
        options = Options(detach, detach, 60.0, watch, None, api, None, "auto", None, as_json=False)
        lines = welcome(READY, manifest, options, 2.34, started=started)
        text += "\n".join(lines) + "\n--\n"
    lines = welcome(AS_ROOT, manifest, options, 2.34, started=True)
    text += "\n".join(lines) + "\n--\n"
    compare("welcome", text)


def test_mistakes_in_a_manifest(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "bedstone.yaml").write_text(MISTAKES)
    compare("mistakes", transcript(capsys, "up", "--detach"))
    assert not (directory / ".bedstone").exists(), "nothing is left behind"


def test_without_a_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    text = transcript(capsys, "up") + transcript(capsys, "up", "shop")
    text += transcript(capsys, "ps") + transcript(capsys, "apply", "-f", "none.yaml")
    compare("no-manifest", text)


def test_where_nothing_runs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "bedstone.yaml").write_text(MANIFEST)
    text = "".join(transcript(capsys, *words) for words in (("ps",), ("logs", "web"), ("down",)))
    compare("not-running", text)


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    words: list[tuple[str, ...]] = [
        ("pss",),
        ("up", "--wait"),
        ("get", "planet"),
        ("logs", "web", "--since", "yesterday"),
        ("ps", "-C", ".", "--server", "https://mesh.example.org"),
        ("ps", "--server", "http://mesh.example.org"),
    ]
    compare("usage", "".join(transcript(capsys, *line) for line in words))


def test_differences(server: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    changes = (
        Change(op="+", subject="workload risk", after="command: [python, risk.py]"),
        Change(op="~", subject="workload web", before="replicas: 2", after="3", effect="scales"),
        Change(op="-", subject="database ledger", effect="stops; its data stays"),
    )
    result = ApplyResult(app="bank", generation=2, changes=changes)
    server.answers["POST /v1/apps/bank/plan"] = Answer(result)
    compare("apply", transcript(capsys, "apply", "-f", "bedstone.yaml", "--dry-run"))
