"""What receivers know, for any course of alerts, silences, failures and restarts."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.control.monitoring.alerts.groups import (
    LONGEST,
    Firing,
    GroupKey,
    Target,
    key_of,
    plan,
)
from bedstone.model.alert_records import AlertGroupRecord, ToldAlert
from bedstone.model.monitoring_spec import ReceiverSpec

WAIT, REPEAT = 5.0, 10_000.0
NAMES = ("a", "b", "c")
GROUPS = {"a": "one", "b": "one", "c": "two"}


@dataclass(frozen=True)
class Step:
    """What is so for some seconds."""

    seconds: int
    fires: frozenset[str]
    silenced: frozenset[str]
    takes: bool
    restarted: bool
    answers: bool = True
    """Else it takes what it is told, and that is not heard of."""


subsets = st.frozensets(st.sampled_from(NAMES))
steps = st.lists(
    st.builds(
        Step, st.integers(1, 20), subsets, subsets, st.booleans(), st.booleans(), st.booleans()
    ),
    max_size=12,
)


@dataclass
class Run:
    """A receiver, and what it was told."""

    resolved: bool
    records: dict[GroupKey, AlertGroupRecord] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    knows: set[str] = field(default_factory=set)
    told: list[tuple[frozenset[str], frozenset[str]]] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    now: float = 1000.0

    def __post_init__(self) -> None:
        spec = ReceiverSpec(
            webhook="http://h", group_wait=WAIT, repeat=REPEAT, resolved=self.resolved
        )
        self.target = Target("shop", "people", spec, frozenset({"shop"}))

    def second(self, step: Step, seconds: float = 1) -> None:
        self.now += seconds
        for name in NAMES:
            if name in step.fires:
                self.since.setdefault(name, self.now)
            elif self.since.pop(name, None) is not None:
                self.ended[self.alert(name).fingerprint] = self.now
        firing = [Firing("shop", self.alert(name), ("group",)) for name in sorted(step.fires)]
        due, gone = plan(
            [self.target],
            firing,
            self.records,
            lambda labels: labels["rule"] in step.silenced,
            lambda one: self.ended.get(one, 0.0),
            self.now,
        )
        for record in gone:
            del self.records[key_of(record)]
        for one in due:
            taken = one.silent or step.takes
            if taken and (one.silent or step.answers):
                record = one.succeeded(self.now)
            else:
                record = one.failed(self.now, 1.0, maybe=taken)
            # What is kept is what the store gives back.
            self.records[one.key] = AlertGroupRecord.decode(record.encode())
            if one.silent or not taken:
                continue
            fires = frozenset(alert.labels["rule"] for alert in one.firing)
            over = frozenset(alert.labels["rule"] for alert in one.resolved)
            assert fires | over, "nothing is told of nothing"
            assert fires <= step.fires
            assert not fires & step.silenced
            assert not over & step.fires, "nothing is told to be over that fires"
            known = self.knows | self.unsure
            assert over <= known, "nothing is told to be over that was not told"
            needed = over or fires - self.knows or fires & self.unsure
            assert needed, "nothing is told again without need"
            self.unsure -= fires | over
            if not step.answers:
                self.unsure |= fires | over
            assert len({GROUPS[name] for name in fires | over}) == 1
            self.knows = (self.knows - over) | fires
            self.told.append((fires, over))

    def alert(self, name: str) -> ToldAlert:
        labels = {"rule": name, "severity": "page", "group": GROUPS[name]}
        return ToldAlert(labels=labels, started=self.since.get(name, 0.0))


@settings(max_examples=150, deadline=None)
@given(steps, subsets)
def test_a_receiver_that_can_be_reached_comes_to_know_what_fires(
    course: list[Step], fires: frozenset[str]
) -> None:
    run = Run(resolved=True)
    for step in course:
        if step.restarted:
            run.ended.clear()  # it is kept in memory only
        for _ in range(step.seconds):
            run.second(step)
    quiet = Step(1, fires, frozenset(), takes=True, restarted=False)
    for _ in range(10):
        run.second(quiet, LONGEST / 5)
    assert run.knows == set(fires)
    before = len(run.told)
    for _ in range(10):
        run.second(quiet, 10)
    assert len(run.told) == before, "when things are as they were told, nothing is due"
    if not fires:
        assert run.records == {}


@settings(max_examples=100, deadline=None)
@given(steps)
def test_a_receiver_that_wants_no_end_hears_of_none_and_of_each_beginning(
    course: list[Step],
) -> None:
    run = Run(resolved=False)
    run.knows = set()

    def second(step: Step, seconds: float = 1) -> None:
        # What ended it is not told, so it may hear of the same again.
        run.knows &= step.fires | step.silenced
        run.second(step, seconds)

    for step in course:
        for _ in range(step.seconds):
            second(step)
    quiet = Step(1, frozenset(), frozenset(), takes=True, restarted=False)
    for _ in range(10):
        second(quiet, LONGEST / 5)
    assert all(not over for _, over in run.told)
    assert run.records == {}
    for _ in range(10):
        second(Step(1, frozenset("a"), frozenset(), takes=True, restarted=False), LONGEST / 5)
    assert run.told[-1] == (frozenset("a"), frozenset())
