"""Histories in files: what is written is read again, and checked by a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bedstone.errors import InvalidError
from bedstone.testing.histories import Txn, anomalies, append, read, read_list, write
from bedstone.testing.history_files import dumped, main, parsed
from bedstone.testing.history_recording import Recording

TORN = [
    dumped("ok", Txn("T1", (append("x", 1), append("y", 1)))),
    dumped("ok", Txn("T2", (read_list("x"), read_list("y", 1)))),
]


def test_a_recording_is_read_again(tmp_path: Path) -> None:
    wrote = Txn("T1", (write("r", 1), append("x", 2)))
    failed = Txn("T2", (read("r", None), append("x", 3)), committed=False)
    silent = Txn("T3", (append("x", 4),))
    last = Txn("last", (read("r", 1), read_list("x", 2)))
    events = (("ok", wrote), ("fail", failed), ("unknown", silent))
    ended = Txn("T3", silent.operations, committed=False)
    recording = Recording(events, (wrote, failed, ended, last), {"r": (1,)})
    path = tmp_path / "history.jsonl"
    recording.save(path)
    history, orders = parsed(path.read_text().splitlines())
    assert set(history) == {wrote, failed, ended, last}
    assert orders == {"r": [1]}
    assert recording.astray() == ()
    assert recording.committed == 1


def test_what_goes_astray_is_said() -> None:
    wrote, failed = Txn("T1", (append("x", 1),)), Txn("T2", (append("x", 2),), committed=False)
    last = Txn("last", (read_list("x", 2),))
    recording = Recording((), (wrote, failed, last), {})
    assert recording.astray() == (("x", 1), ("x", 2))


def test_what_is_unknown_is_committed_if_somebody_committed_read_it() -> None:
    unknown = [
        dumped("unknown", Txn("seen", (append("x", 1), read_list("y", 1)))),
        dumped("unknown", Txn("by the unknown", (append("y", 1),))),
        dumped("unknown", Txn("unseen", (append("z", 1),))),
        '{"type": "invoke", "name": "began"}',
    ]
    history, _ = parsed([*unknown, "", dumped("ok", Txn("reader", (read_list("x", 1),)))])
    assert {txn.name for txn in history} == {"seen", "by the unknown", "reader"}
    assert all(txn.committed for txn in history)
    assert anomalies(history) == ()


def test_anomalies_are_shown_with_their_witness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text("\n".join(TORN))
    assert main([str(path)]) == 1
    output = capsys.readouterr().out
    assert "2 transactions, at most read-committed" in output
    assert "G-single: T2 -rw(x)-> T1 -wr(y)-> T2" in output


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "clean.jsonl"
    path.write_text(TORN[0] + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "bedstone.testing.histories", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 transactions, at most serializable" in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"type": "other"}',
        '{"type": "ok", "name": "T1"}',
        '{"type": "ok", "name": "T1", "operations": 1}',
        '{"type": "ok", "name": "T1", "operations": [["append", "x", null]]}',
        '{"type": "ok", "name": "T1", "operations": [["jump", "x", 1]]}',
    ],
)
def test_what_is_no_history_is_refused(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidError, match="line 1"):
        parsed([line])
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    assert main([str(path)]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
