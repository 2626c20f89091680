"""Alerts of a server, in time that the test moves: from a second's value to who is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from bedstone.control.monitoring.alerts.machine import Certainty
from bedstone.errors import InvalidError, NotFoundError
from bedstone.model.alerts import SilenceRequest
from bedstone.server.alert_routes import lines
from bedstone.store import open_store
from bedstone.telemetry.frames import Labels
from bedstone.testing.alerts import AlertWorld

TEXT = """\
app: shop
workloads: {web: {command: [x], replicas: 0}}
alerts:
  slow: {when: latency > 1, for: 3s, severity: page, summary: "{workload} takes {value} s"}
receivers:
  people: {webhook: "http://127.0.0.1:1/", group_wait: 2s, repeat: 1m}
"""
WEB = (("workload", "web"),)
SHOP = (("workload", "shop"),)


def in_world(body: Callable[[AlertWorld], Awaitable[None]], text: str = TEXT) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            world = AlertWorld(store, text)
            try:
                await body(world)
            finally:
                await world.close()

    asyncio.run(main())


def test_a_condition_is_pending_fires_is_told_and_is_over() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            await world.seconds(2)
            assert world.states("slow") == []
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(1)
            assert world.states("slow") == ["pending workload=web"]
            await world.seconds(3)
            assert world.states("slow") == ["firing workload=web"]
            assert world.receivers.of() == []
            await world.seconds(2)
            assert world.receivers.of() == [(["slow workload=web"], [])]
            (line,) = [line for line in lines(alerting) if line.state == "firing"]
            assert line.summary == "web takes 1.5 s"
            assert (line.rule, line.app, line.severity) == ("slow", "shop", "page")
            assert [attempt.receiver for attempt in line.notified] == ["people"]
            world.evaluator.say("latency > 1", None)
            await world.seconds(3)
            assert world.states("slow") == []
            assert world.receivers.of()[1:] == [([], ["slow workload=web"])]
            history = [event.what for event in await alerting.kept.history("shop", "slow", 10)]
            assert history[::-1] == ["pending", "firing", "notified", "resolved", "notified"]

    in_world(body)


def test_a_restart_neither_resets_a_for_duration_nor_tells_twice() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        async with world.running():
            await world.seconds(2)
            assert world.states("slow") == ["pending workload=web"]
        async with world.running():
            assert world.states("slow") == ["pending workload=web"]
            await world.seconds(2)
            assert world.states("slow") == ["firing workload=web"]
            await world.seconds(2)
            assert len(world.receivers.of()) == 1
        async with world.running():
            await world.seconds(5)
            assert world.states("slow") == ["firing workload=web"]
            assert len(world.receivers.of()) == 1
        world.evaluator.say("latency > 1", None)
        async with world.running():
            await world.seconds(3)
            assert world.receivers.of()[1:] == [([], ["slow workload=web"])]

    in_world(body)


def test_seconds_from_before_a_restart_end_nothing() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        async with world.running():
            await world.seconds(2)
            assert world.states("slow") == ["pending workload=web"]
        # What the server had not written of the series is lost: the last second says nothing.
        lost = world.reader.last()
        world.evaluator.say("latency > 1", lambda at: {WEB: 1.5} if at > lost else None)
        async with world.running() as alerting:
            await world.wait(0.5)
            assert world.states("slow") == ["pending workload=web"]
            assert next(line.rule for line in lines(alerting)) == "slow"
            await world.seconds(2)
            assert world.states("slow") == ["firing workload=web"]

    in_world(body)


def test_what_fired_before_a_restart_and_was_not_told_is_told_after_it() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        async with world.running():
            await world.seconds(4)
            assert world.states("slow") == ["firing workload=web"]
            assert world.receivers.of() == []
        async with world.running():
            await world.seconds(2)
            assert world.receivers.of() == [(["slow workload=web"], [])]

    in_world(body)


def test_an_alert_that_ended_while_the_server_was_away_is_told_to_be_over() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 1.5})
        async with world.running():
            await world.seconds(6)
            assert len(world.receivers.of()) == 1
        world.evaluator.say("latency > 1", None)
        world.reader.finish(world.reader.last() + 500)
        world.now += 500
        async with world.running():
            await world.seconds(3)
            assert world.states("slow") == []
            assert world.receivers.of()[1:] == [([], ["slow workload=web"])]

    in_world(body)


def test_an_incomplete_second_neither_fires_nor_resolves() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(2, missing={"n": "away"})
            assert world.states("slow") == []
            await world.seconds(4)
            assert world.states("slow") == ["firing workload=web"]
            world.evaluator.say("latency > 1", None)
            await world.seconds(5, missing={"n": "away"})
            assert world.states("slow") == ["firing workload=web"]
            await world.seconds(1)
            assert world.states("slow") == []

    in_world(body)


def test_a_part_that_is_away_for_long_does_not_blind_the_rest() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {SHOP: 2.0})
            await world.seconds(4)
            assert world.states("slow") == ["firing workload=shop"]
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(16, missing={"n": "away"})
            assert world.states("slow") == ["firing workload=shop", "firing workload=web"]

    in_world(body)


def test_a_rule_that_cannot_be_evaluated_is_unknown_and_keeps_what_it_said() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(4)
            world.evaluator.say("latency > 1", InvalidError("too many series"))
            await world.seconds(3)
            found = [line for line in lines(alerting) if line.rule == "slow"]
            assert [(line.state, line.error) for line in found] == [
                ("firing", "too many series"),
                ("unknown", "too many series"),
            ]
            world.evaluator.say("latency > 1", None)
            await world.seconds(1)
            found = [line for line in lines(alerting) if line.rule == "slow"]
            assert [(line.state, line.error) for line in found] == [("inactive", "")]

    in_world(body)


def test_alerts_of_a_group_are_told_together_and_what_comes_later_again() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {WEB: 1.5, SHOP: 2.0})
            await world.seconds(6)
            both = ["slow workload=shop", "slow workload=web"]
            assert world.receivers.of() == [(both, [])]
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(3)
            assert world.receivers.of()[1:] == [(["slow workload=web"], ["slow workload=shop"])]

    in_world(body)


def test_groups_are_by_the_labels_that_the_rule_says() -> None:
    text = TEXT.replace("for: 3s", "group_by: [workload]")

    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {WEB: 1.5, SHOP: 2.0})
            await world.seconds(4)
            told = sorted(firing for firing, _ in world.receivers.of())
            assert told == [["slow workload=shop"], ["slow workload=web"]]

    in_world(body, text)


def test_what_stays_is_told_again_after_the_repeat_interval() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(6)
            await world.seconds(55)
            assert len(world.receivers.of()) == 1
            await world.seconds(6)
            assert len(world.receivers.of()) == 2

    in_world(body)


def test_a_silence_holds_what_matches_and_its_end_tells() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            request = SilenceRequest(labels={"workload": "web"}, seconds=30, why="known")
            silence = await alerting.silence(request, "ann")
            world.evaluator.say("latency > 1", {WEB: 1.5, SHOP: 2.0})
            await world.seconds(8)
            assert world.receivers.of() == [(["slow workload=shop"], [])]
            held = [line for line in lines(alerting) if line.silence]
            assert [(line.labels, line.silence) for line in held] == [
                ({"workload": "web"}, silence.id)
            ]
        async with world.running() as alerting:
            assert [one.id for one in alerting.silences.list()] == [silence.id]
            await world.seconds(25)
            both = ["slow workload=shop", "slow workload=web"]
            assert world.receivers.of()[1:] == [(both, [])]
            assert alerting.silences.list() == []
            audit = [(entry.who, entry.action) for entry in await world.changes.audit(10)]
            assert ("ann", "silence") in audit

    in_world(body)


def test_ending_a_silence_is_audited_and_of_an_unknown_one_refused() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            request = SilenceRequest(labels={"rule": "slow"}, seconds=30, why="known")
            silence = await alerting.silence(request, "ann")
            await alerting.silences.end(silence.id, "bob")
            with pytest.raises(NotFoundError, match="there is no silence"):
                await alerting.silences.end(silence.id, "bob")
            audit = {(entry.who, entry.action) for entry in await world.changes.audit(10)}
            assert audit >= {("ann", "silence"), ("bob", "unsilence")}

    in_world(body)


def test_what_is_over_while_silenced_is_told_when_the_silence_ends() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(6)
            request = SilenceRequest(labels={"rule": "slow"}, seconds=100, why="known")
            await alerting.silence(request, "ann")
            await world.seconds(80)
            world.evaluator.say("latency > 1", None)
            await world.seconds(10)
            assert len(world.receivers.of()) == 1
            await world.seconds(15)
            assert world.receivers.of()[1:] == [([], ["slow workload=web"])]

    in_world(body)


def test_a_receiver_is_told_of_its_severities_only_and_not_of_the_end_if_it_does_not_want_to() -> (
    None
):
    text = TEXT.replace("group_wait: 2s", "group_wait: 1s, severities: [page], resolved: false")
    text = text.replace("receivers:", "  small: {when: small}\nreceivers:")

    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            world.evaluator.say("latency > 1", {WEB: 1.5})
            world.evaluator.say("small", {(): 1.0})
            await world.seconds(6)
            assert world.receivers.of() == [(["slow workload=web"], [])]
            assert [["small"], []] in [list(told) for told in world.receivers.of("log")]
            world.evaluator.say("latency > 1", None)
            await world.seconds(4)
            assert len(world.receivers.of()) == 1
            assert not [r for r in alerting.telling.records.values() if r.receiver == "people"]

    in_world(body, text)


def test_a_changed_rule_ends_its_alerts_and_a_changed_summary_does_not() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running() as alerting:
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(6)
            await world.apply(TEXT.replace("takes", "needs"))
            await world.seconds(1)
            assert world.states("slow") == ["firing workload=web"]
            await world.apply(TEXT.replace("latency > 1", "latency > 2"))
            await world.seconds(3)
            assert world.states("slow") == []
            assert world.receivers.of()[1:] == [([], ["slow workload=web"])]
            (ended,) = [
                event.detail
                for event in await alerting.kept.history("", "slow", 20)
                if event.what == "resolved"
            ]
            assert ended == "the rule was changed"

    in_world(body)


def test_nothing_is_written_for_a_second_in_which_nothing_changes() -> None:
    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", {WEB: 1.5})
            await world.seconds(8)
            before = (await world.store.list("")).revision
            await world.seconds(20)
            assert (await world.store.list("")).revision == before

    in_world(body)


def test_a_rule_that_is_expensive_is_evaluated_less_often_than_others() -> None:
    text = TEXT.replace("receivers:", "  cheap: {when: cheap}\nreceivers:")

    def work(_: int) -> dict[Labels, float]:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.05:  # a fiftieth of 2.5 seconds
            pass
        return {WEB: 1.5}

    async def body(world: AlertWorld) -> None:
        async with world.running():
            world.evaluator.say("latency > 1", work)
            await world.seconds(12)
            asked = [expression for expression, _ in world.evaluator.asked]
            assert asked.count("cheap") == 12
            assert 2 <= asked.count("latency > 1") <= 5
            # It is looked at every 3 seconds, and fires when it has held for 3 all the same.
            assert world.states("slow") == ["firing workload=web"]

    in_world(body, text)


def test_alerts_wait_for_no_reader_s_question() -> None:
    """Searches and tests of rules take the threads that all share; alerts have their own."""

    async def body(world: AlertWorld) -> None:
        names: list[str] = []
        async with world.running() as alerting:
            ask = alerting.examiner.certainty

            def asked(second: int) -> Certainty:
                names.append(threading.current_thread().name)
                return ask(second)

            alerting.examiner.certainty = asked  # type: ignore[method-assign]
            await world.seconds(2)
        assert names
        assert all(name.startswith("alerts-quick") for name in names)

    in_world(body)
