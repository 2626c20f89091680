from __future__ import annotations

import os
from pathlib import Path

from bedstone.processes import warden
from bedstone.processes.cgroups import ControlGroups
from bedstone.processes.spec import ProcessInfo, ProcessSpec
from bedstone.processes.table import Process, ProcessTable


def test_a_shortened_journal_keeps_what_runs_and_is_written_on(tmp_path: Path) -> None:
    journal = tmp_path / "journal-x"
    table = ProcessTable(
        "s/x", journal, ControlGroups("k", tmp_path, ""), lambda _: None, lambda _: None
    )
    os.write(table._journal, b'1 1 "ended"\n' * 1000)
    spec = ProcessSpec("a", ("true",))
    info = ProcessInfo("a", "running", spec.digest(), pid=77, start_time=5)
    table._by_pid[77] = Process(spec, info)
    table._shorten_journal()
    os.write(table._journal, b'88 6 "b"\n')
    assert warden.read_journal(str(journal)) == {(77, 5), (88, 6)}
    assert [path.name for path in tmp_path.iterdir()] == ["journal-x"]
    assert [process.pid for process in table.running()] == [77]
    os.close(table._journal)
