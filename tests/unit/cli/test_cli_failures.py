"""Errors, bugs and interrupts: what is shown, and the exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bedstone.cli.failures import Failed, report
from bedstone.errors import (
    EXIT_STATUS,
    ConflictError,
    DeniedError,
    Error,
    InvalidError,
    NotFoundError,
    Position,
    UnavailableError,
    UnknownOutcomeError,
    VerificationError,
)

KINDS = (
    InvalidError,
    NotFoundError,
    ConflictError,
    DeniedError,
    VerificationError,
    UnavailableError,
    UnknownOutcomeError,
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_exit_status_and_its_hint(
    kind: type[Error], capsys: pytest.CaptureFixture[str]
) -> None:
    status = report(kind("got a, expected b", hint="write b"))
    assert status == EXIT_STATUS[kind.code]
    assert capsys.readouterr() == ("", "error: got a, expected b\nhint: write b\n")


def test_a_position_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    report(InvalidError("got a", position=Position("bedstone.yaml", 3, 5)))
    assert capsys.readouterr().err == "error: bedstone.yaml:3:5: got a\n"


def test_an_error_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report(InvalidError("got \x1b[2Ja\x07b"))
    assert not {"\x1b", "\x07"}.intersection(capsys.readouterr().err)


def test_a_bug_says_so_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / ".bedstone" / "logs"
    logs.mkdir(parents=True)
    with pytest.raises(KeyError) as caught:
        raise KeyError("surprise")
    assert report(caught.value) == 70
    shown = capsys.readouterr().err
    (kept,) = logs.glob("crash-*.log")
    assert "a bug in bedstone: KeyError: 'surprise'" in shown
    assert str(kept) in shown
    assert "Traceback" not in shown
    assert "Traceback" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_bug_without_a_state_directory_is_kept_where_temporary_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert report(RuntimeError("x")) == 70
    (kept,) = tmp_path.glob("crash-*.log")
    assert str(kept) in capsys.readouterr().err


def test_interrupts_and_negative_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyboardInterrupt()) == 130
    interrupted = click.Abort()
    interrupted.__cause__ = KeyboardInterrupt()
    assert report(interrupted) == 130
    assert report(Failed(1)) == 1
    assert capsys.readouterr().err == ""
    assert report(click.Abort()) == 1
    assert "nothing was changed" in capsys.readouterr().err


def test_the_error_that_explains_a_group_is_the_one_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = ExceptionGroup("inner", [ValueError("x"), NotFoundError("no such app")])
    assert report(ExceptionGroup("outer", [inner])) == 3
    assert "no such app" in capsys.readouterr().err


def test_a_reader_that_has_gone_away_is_no_failure(tmp_path: Path) -> None:
    """`bedstone schema | head -1`, as a shell runs it."""
    read, write = os.pipe()
    os.close(read)
    code = "from bedstone.cli.main import main; main(['schema'])"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in (0, 1)
