"""Whether a rule holds in a second: asks the series, and says what may be concluded.

Rules:
- A second that is complete decides: what has no value in it does not hold.
- In an incomplete second something may only be missing. For the first `PATIENCE` such seconds in a
  row nothing is concluded; after that, what is there counts (or a node that is gone would blind all
  rules), and what is not keeps its state.
- A dead man's switch counts the seconds without a value, incomplete ones too: that nothing comes is
  what it is for. Seconds in which the server itself was away count for nobody.
- A number that is not one (NaN) is no value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from bedstone.control.monitoring.alerts.baselines import Baselines
from bedstone.control.monitoring.alerts.burning import burning
from bedstone.control.monitoring.alerts.machine import Certainty, Held, Outcome
from bedstone.control.monitoring.alerts.rules import (
    Baseline,
    BurnRate,
    Condition,
    DeadMan,
    Facts,
    Rule,
)
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import Error
from bedstone.telemetry.frames import Labels

PATIENCE: Final = 10
_NAME: Final = "__name__"
_LONGEST_LOOK_BACK: Final = 86400


@dataclass(frozen=True, slots=True)
class Measured:
    """One series' value."""

    labels: Labels
    value: float


class Evaluator(Protocol):
    """What rules need of PromQL. Called from several threads."""

    def instant(self, expression: str, at: int) -> Sequence[Measured]:
        """The values of an expression at one time; names of metrics are left out of the labels.

        Raises:
            Error: it cannot be evaluated.
        """
        ...


@dataclass
class _Watch:
    """What a dead man's switch remembers: up to when it looked, and how long nothing came."""

    looked: int
    unseen: float


@dataclass
class Examiner:
    """Evaluates rules; one rule is never evaluated twice at once.

    Args:
        reader: the series.
        evaluator: PromQL over them.
    """

    reader: Reader
    evaluator: Evaluator
    _watches: dict[str, _Watch] = field(default_factory=dict)
    _baselines: Baselines = field(init=False)

    def __post_init__(self) -> None:
        self._baselines = Baselines(self.reader, self._measure)

    def examine(self, rule: Rule, second: int, certainty: Certainty) -> Outcome:
        """What a rule says of a second that was finished; `certainty` is that second's."""
        try:
            return self._examined(rule, second, certainty)
        except Error as error:
            return Outcome(error=error.message)
        except Exception as error:  # noqa: BLE001 - one rule must not end the others
            return Outcome(error=f"an error of ours: {type(error).__name__}: {error}")

    def forget(self, versions: Iterable[str]) -> None:
        """Drop what is remembered for rules that are no more."""
        for version in versions:
            self._watches.pop(version, None)
            self._baselines.forget(version)

    def certainty(self, second: int) -> Certainty:
        """What may be concluded of a second."""
        incomplete = self.reader.incomplete(second - PATIENCE, second)
        if second not in incomplete:
            return Certainty.WHOLE
        row = all(at in incomplete for at in range(second - PATIENCE, second + 1))
        return Certainty.PARTLY if row else Certainty.NONE

    def _examined(self, rule: Rule, second: int, certainty: Certainty) -> Outcome:
        match rule.source:
            case Condition(expression):
                measured = self._measure(expression, second)
                holds = {m.labels: Held(m.value) for m in measured}
                return Outcome(holds, certainty, value=_only(measured))
            case BurnRate() as source:
                rates = burning(self.reader, source, second)
                holds = {
                    (("window", name),): Held(rate, severity)
                    for name, (rate, held, severity) in rates.items()
                    if held
                }
                worst = max((rate for rate, _, _ in rates.values()), default=None)
                return Outcome(holds, certainty, value=worst)
            case Baseline() as source:
                holds, value = self._baselines.compare(rule.version, source, second)
                return Outcome(holds, certainty, value=value)
            case DeadMan() as source:
                return self._dead_man(rule.version, source, second)
            case Facts(facts=facts):
                return Outcome({labels: Held(value) for labels, value in facts(second).items()})

    def _measure(self, expression: str, second: int) -> list[Measured]:
        found = self.evaluator.instant(expression, second)
        return [measured for measured in found if not math.isnan(measured.value)]

    def _dead_man(self, version: str, source: DeadMan, second: int) -> Outcome:
        if self._measure(source.expression, second):
            self._watches[version] = _Watch(second, 0)
            return Outcome(value=0)
        watch = self._watches.get(version)
        if watch is None:
            watch = self._watches[version] = _Watch(second, self._unseen(source, second))
        else:
            watch.unseen += self._collected(watch.looked + 1, second)
            watch.looked = second
        if watch.unseen >= source.within:
            return Outcome({(): Held(watch.unseen)})
        return Outcome(value=watch.unseen)

    def _collected(self, start: int, end: int) -> int:
        """How many seconds of a span somebody asked for."""
        if end < start:
            return 0
        away = sum("server" in why for why in self.reader.incomplete(start, end).values())
        return end - start + 1 - away

    def _unseen(self, source: DeadMan, second: int) -> float:
        """How long nothing has come, as far as the series tell, to a sixtieth of `within`."""
        span = min(math.ceil(source.within), _LONGEST_LOOK_BACK)
        first = second - span + 1
        step = max(1, span // 60)
        for at in range(second - step, first - 1, -step):
            if self._measure(source.expression, at):
                return self._collected(at + 1, second)
        return self._collected(first, second)


def _only(measured: Sequence[Measured]) -> float | None:
    return measured[0].value if len(measured) == 1 else None


def told_labels(labels: Mapping[str, str]) -> Labels:
    """The labels of a series without its metric's name, sorted."""
    return tuple(sorted((key, value) for key, value in labels.items() if key != _NAME))
