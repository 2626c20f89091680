"""`bedstone alerts`, against a fake server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from bedstone.errors import NotFoundError
from bedstone.model.alerts import (
    AlertEvent,
    AlertHistory,
    AlertLine,
    AlertList,
    AlertSample,
    AlertTest,
    Silence,
    SilenceList,
)
from bedstone.testing.api import Answer, FakeApi, problem

Command = Callable[..., Any]

NOW = time.time()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still as late as when these answers were written, however long other tests took."""
    monkeypatch.setattr("bedstone.cli.alerts.time.time", lambda: NOW)


FIRING = AlertLine(
    app="bank",
    rule="slow",
    kind="condition",
    state="firing",
    severity="page",
    labels={"workload": "web"},
    value=1.52345,
    summary="web takes 1.5 s",
    since=NOW - 190,
    fired_at=NOW - 70,
)
HELD = FIRING.model_copy(
    update={"labels": {"workload": "\x1b[2Jshop"}, "silenced_until": NOW + 3600, "silence": "a1"}
)
UNKNOWN = AlertLine(
    app="bank", rule="odd", kind="baseline", state="unknown", error="it needs 3 days to compare"
)
QUIET = AlertLine(app="", rule="disk-almost-full", kind="condition", state="inactive")
LIST = AlertList(second=1, items=(FIRING, HELD, UNKNOWN, QUIET))


def test_what_fires_is_listed_first_and_quiet_rules_are_counted(
    server: FakeApi, command: Command
) -> None:
    server.answers["GET /v1/alerts"] = Answer(LIST)
    ended = command("alerts")
    assert ended.status == 0
    rows = ended.out.splitlines()
    assert re.match(
        r"firing +page +bank +slow +workload=web +1\.523 +3m\d\ds +web takes 1\.5 s$", rows[1]
    )
    assert "firing, silenced for" in rows[2]
    assert "\x1b" not in ended.out
    assert re.match(r"unknown +ticket +bank +odd .*it needs 3 days to compare", rows[3])
    assert rows[4] == "1 rule is inactive: bedstone alerts ls --all"
    assert "disk-almost-full" in command("alerts", "ls", "--all").out
    assert "odd" not in command("alerts", "--app", "shop").out
    assert AlertList.model_validate(json.loads(command("alerts", "-o", "json").out)) == LIST


def test_it_says_when_nothing_fires(server: FakeApi, command: Command) -> None:
    server.answers["GET /v1/alerts"] = Answer(AlertList(second=1, items=(QUIET,)))
    assert command("alerts").out == "nothing fires; 1 rule is watched\n"


def test_history_is_asked_of_a_rule_and_an_app(server: FakeApi, command: Command) -> None:
    event = AlertEvent(at=NOW, app="bank", rule="slow", what="failed", detail="people: no answer")
    server.answers["GET /v1/alerts/history"] = Answer(AlertHistory(items=(event,)))
    ended = command("alerts", "history", "--rule", "slow", "--app", "bank", "--limit", "7")
    assert re.search(r"failed +bank +slow +- +- +people: no answer", ended.out)
    assert server.asked[-1].query == {"app": "bank", "rule": "slow", "limit": "7"}
    server.answers["GET /v1/alerts/history"] = Answer(AlertHistory())
    ended = command("alerts", "history")
    assert (ended.out, ended.err) == ("", "nothing has fired yet\n")


def test_a_silence_is_made_listed_and_ended(server: FakeApi, command: Command) -> None:
    made = Silence(
        id="a1b2",
        labels={"workload": "web", "rule": "slow"},
        until=NOW + 7200,
        why="new disk",
        who="ann",
        created_at=NOW,
    )
    server.answers["POST /v1/silences"] = Answer(made)
    ended = command(
        "alerts", "silence", "workload=web", "rule=slow", "--for", "2h", "--why", "new disk"
    )
    assert ended.out.splitlines() == [
        "silenced rule=slow workload=web for 2h00m",
        "end it: bedstone alerts unsilence a1b2",
    ]
    assert server.asked[-1].body == {
        "labels": {"workload": "web", "rule": "slow"},
        "seconds": 7200.0,
        "why": "new disk",
    }
    server.answers["GET /v1/silences"] = Answer(SilenceList(items=(made,)))
    assert re.search(
        r"a1b2 +rule=slow workload=web +(2h00m|1h59m) +ann +new disk",
        command("alerts", "silences").out,
    )
    server.answers["DELETE /v1/silences/a1b2"] = Answer({"deleted": "a1b2"})
    assert command("alerts", "unsilence", "a1b2").out == "silence a1b2 is over\n"
    server.answers["DELETE /v1/silences/x"] = problem(NotFoundError("there is no silence x"))
    assert command("alerts", "unsilence", "x").status == 3


def test_mistakes_in_a_silence_are_told_before_anything_is_asked(
    server: FakeApi, command: Command
) -> None:
    asked = len(server.asked)
    assert command("alerts", "silence", "web", "--for", "2h", "--why", "x").status == 2
    assert command("alerts", "silence", "a=b", "--for", "soon", "--why", "x").status == 2
    assert command("alerts", "silence", "a=b", "--for", "31d", "--why", "x").status == 2
    assert command("alerts", "silence", "a=b", "--for", "2h").status == 2
    assert command("alerts", "silence", "--for", "2h", "--why", "x").status == 2
    assert len(server.asked) == asked


def test_a_rule_is_tried_and_shows_what_it_measures(server: FakeApi, command: Command) -> None:
    tested = AlertTest(
        app="bank",
        rule="slow",
        kind="condition",
        second=int(NOW),
        expression="x > 1",
        samples=(AlertSample(labels={"workload": "web"}, value=0.25, holds=False),),
        note="this second is incomplete",
    )
    server.answers["GET /v1/alerts/test"] = Answer(tested)
    out = command("alerts", "test", "slow", "--app", "bank").out
    assert re.match(r"slow: does not hold at \d\d:\d\d:\d\d\n  x > 1\n  workload=web  0.25\n", out)
    assert "this second is incomplete" in out
    assert server.asked[-1].query == {"rule": "slow", "app": "bank"}
    failed = tested.model_copy(update={"samples": (), "error": "too many series"})
    server.answers["GET /v1/alerts/test"] = Answer(failed)
    out = command("alerts", "test", "slow").out
    assert "slow: cannot be evaluated" in out
    assert "too many series" in out
    held = tested.model_copy(update={"samples": (), "holds": True, "value": 40.0})
    server.answers["GET /v1/alerts/test"] = Answer(held)
    assert "value 40" in command("alerts", "test", "slow").out
