"""Log records that come over OTLP stand in the log of the instance that sent them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from bedstone.node import logfile
from bedstone.node.collector.application_logs import ApplicationLogs
from bedstone.node.collector.intake import Sender
from bedstone.telemetry.lines import structured

WEB = Sender("bank", "default", "web", "web-1")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def request(*texts: str) -> ExportLogsServiceRequest:
    found = ExportLogsServiceRequest()
    scope = found.resource_logs.add().scope_logs.add()
    scope.scope.name = "shop"
    for text in texts:
        record = scope.log_records.add(
            time_unix_nano=1_700_000_000_250_000_000,
            severity_number=SeverityNumber.SEVERITY_NUMBER_WARN,
            trace_id=bytes.fromhex(TRACE),
            span_id=bytes.fromhex("00f067aa0ba902b7"),
        )
        record.body.string_value = text
        record.attributes.add(key="amount").value.int_value = 5
        record.attributes.add(key="level").value.string_value = "forged"
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "instances" / "bank" / "default" / "web" / "web-1.log"
    path.parent.mkdir(parents=True)
    path.write_text("printed\n")
    return path


def test_records_are_appended_as_lines_of_json(tmp_path: Path, log: Path) -> None:
    logs = ApplicationLogs(tmp_path)
    assert logs.logs(WEB, request("slow", "line one\nline two")) == 0
    logs.tell(WEB, "metrics were dropped")
    logs.close()
    printed, first, second, told = log.read_text().splitlines()
    assert printed == "printed"
    assert json.loads(first) == {
        "time": 1700000000.25,
        "level": "warning",
        "event": "slow",
        "logger": "shop",
        "trace_id": TRACE,
        "span_id": "00f067aa0ba902b7",
        "amount": 5,
    }
    assert structured(second).text == "line one\nline two"
    assert (structured(told).level, structured(told).text) == ("warning", "metrics were dropped")


def test_what_is_no_text_is_written_all_the_same(tmp_path: Path, log: Path) -> None:
    found = ExportLogsServiceRequest()
    record = found.resource_logs.add().scope_logs.add().log_records.add()
    record.body.kvlist_value.values.add(key="card").value.array_value.values.add().int_value = 7
    found.resource_logs[0].scope_logs[0].log_records.add()
    logs = ApplicationLogs(tmp_path, lambda: 5.0)
    logs.logs(WEB, found)
    logs.close()
    first, second = (json.loads(line) for line in log.read_text().splitlines()[1:])
    assert first == {"time": 5.0, "level": "info", "event": '{"card": [7]}', "logger": ""}
    assert second["event"] == "null"


def test_a_line_too_long_for_a_log_is_cut_and_still_json(tmp_path: Path, log: Path) -> None:
    logs = ApplicationLogs(tmp_path)
    logs.logs(WEB, request("ü" * logfile.LONGEST_LINE))
    logs.close()
    (line,) = log.read_bytes().splitlines()[1:]
    assert len(line) < logfile.LONGEST_LINE
    found = json.loads(line)
    assert found["truncated"]
    assert found["trace_id"] == TRACE


def test_a_gone_instance_gets_no_file_and_no_name_leads_elsewhere(
    tmp_path: Path, log: Path
) -> None:
    (tmp_path / "secret.log").write_text("")
    logs = ApplicationLogs(tmp_path)
    for sender in (
        Sender("bank", "default", "web", "web-2"),
        Sender("gone", "default", "web", "web-1"),
        Sender("bank", "..", "..", "secret"),
    ):
        logs.logs(sender, request("x"))
    logs.close()
    assert sorted(path.name for path in tmp_path.rglob("*.log")) == ["secret.log", "web-1.log"]
    assert (tmp_path / "secret.log").read_text() == ""
    assert log.read_text() == "printed\n"


def test_what_waits_is_bounded_and_the_sender_is_told(tmp_path: Path, log: Path) -> None:
    logs = ApplicationLogs(tmp_path, most=1000)
    assert logs.logs(WEB, request("x" * 2000, "y")) == 2
    assert logs.logs(WEB, request("fits")) == 0
    logs.close()
    assert [structured(line).text for line in log.read_text().splitlines()] == ["printed", "fits"]
