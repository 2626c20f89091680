"""What goes wrong in a simulated world, when, and how often: drawn from the seed.

Rules:
- Each seed has its own subset of faults and its own rates: a run of everything at once would hide
  what only shows where one thing fails at a time.
- Faults of processes come at steps, and strike whoever was about to run: so that over the seeds a
  process is killed at every one of its awaits.
- Every fault that happens is counted by its kind.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Final


class Fate(enum.Enum):
    """What becomes of a message, a statement or a write."""

    DONE = "done"
    LOST = "lost"
    """It never arrives: nothing is applied, and the sender hears nothing."""
    REFUSED = "refused"
    """Nothing is applied, and the sender hears so."""
    UNANSWERED = "unanswered"
    """It is applied, and the answer is lost."""
    TWICE = "twice"
    LATE = "late"


class Strike(enum.Enum):
    """What befalls a process."""

    CRASH = "crash"
    PAUSE = "pause"
    ROLL = "rolling restart"
    PARTITION = "partition"
    DATABASE = "database restart"
    LOG = "log restart"


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong.

    Args:
        messages: probability of each fate, by message.
        log: of each fate, by call to the log.
        statements: of each fate, by statement sent to a database.
        strikes: the kinds that befall processes.
        spacing: mean number of steps between two strikes.
    """

    messages: tuple[tuple[Fate, float], ...] = ()
    log: tuple[tuple[Fate, float], ...] = ()
    statements: tuple[tuple[Fate, float], ...] = ()
    strikes: tuple[Strike, ...] = ()
    spacing: int = 400


CALM: Final = Rates()

_MESSAGES = (Fate.LOST, Fate.UNANSWERED, Fate.TWICE, Fate.LATE)
_LOG = (Fate.REFUSED, Fate.UNANSWERED, Fate.LOST, Fate.TWICE, Fate.LATE)
_STATEMENTS = (Fate.REFUSED, Fate.UNANSWERED)
_LEVELS = (0.004, 0.02, 0.08)


def draw(random: Random) -> Rates:
    """The faults of one seed."""

    def some(fates: tuple[Fate, ...]) -> tuple[tuple[Fate, float], ...]:
        return tuple((fate, random.choice(_LEVELS)) for fate in fates if random.random() < 0.5)

    return Rates(
        messages=some(_MESSAGES),
        log=some(_LOG),
        statements=some(_STATEMENTS),
        strikes=tuple(strike for strike in Strike if random.random() < 0.5),
        spacing=random.choice((120, 300, 800)),
    )


class Faults:
    """Decides, while it is `active`, what goes wrong; counts what did.

    Args:
        random: the seeded generator.
        rates: how often.
    """

    def __init__(self, random: Random, rates: Rates) -> None:
        self.random = random
        self.rates = rates
        self.active = True
        self.counts: Counter[str] = Counter()

    def message(self) -> Fate:
        """What becomes of a message between two processes."""
        return self._fate("message", self.rates.messages)

    def log(self) -> Fate:
        """What becomes of a call to the log."""
        return self._fate("log", self.rates.log)

    def statement(self) -> Fate:
        """What becomes of a statement on its way to a database."""
        return self._fate("statement", self.rates.statements)

    def delay(self) -> float:
        """Seconds that a message is under way."""
        return 0.0002 + 0.0018 * self.random.random()

    def lateness(self) -> float:
        """Seconds that a late one is under way: more than any caller waits, or less."""
        return math.pow(20.0, self.random.uniform(-1, 1))

    def strike(self) -> Strike | None:
        """What befalls a process now."""
        if not self.active or not self.rates.strikes:
            return None
        return self.random.choice(self.rates.strikes)

    def next_strike(self) -> int:
        """How many steps from now the next one comes."""
        return 1 + int(self.random.expovariate(1 / self.rates.spacing))

    def count(self, kind: str) -> None:
        """One of `kind` happened."""
        self.counts[kind] += 1

    def _fate(self, what: str, rates: tuple[tuple[Fate, float], ...]) -> Fate:
        if self.active:
            for fate, rate in rates:
                if self.random.random() < rate:
                    self.count(f"{what} {fate.value}")
                    return fate
        return Fate.DONE
