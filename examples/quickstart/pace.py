"""The number of updates that a training can make in its time, on a machine that may be busy with other things.

A learning rate that falls to zero needs the number of updates before it starts. So the training is made in legs, each of which
goes on where the last one stopped: a few seconds with each number of threads, then the rest in parts, before each of which the
number of updates is set again from what was measured.
"""

import os
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

# Seconds to measure with each number of threads.
TRIAL_SECONDS = 12
# Shares of the whole time at which the number of updates is set again.
REPLAN = (0.5, 0.8)
# What the schedule begins with, while nothing has been measured.
FIRST_GUESS = 4000


class Leg(NamedTuple):
    """Train with so many threads up to `until` seconds in all (None: to the last update), as if to make `max_update` updates."""

    threads: int
    until: float | None
    max_update: int


@dataclass
class Pace:
    """Measurements so far, as plain values that can be kept in a file.

    Args:
        seconds: for the whole training.
        cores: that may be used.
        updates, trained: updates made, and seconds of training, so far.
        rates: updates per second by number of threads.
    """

    seconds: float
    cores: int
    updates: int = 0
    trained: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def of(cls, values: dict) -> "Pace":
        """The inverse of `dataclasses.asdict`, through JSON, which has no numbers as keys."""
        return cls(**{**values, "rates": {int(threads): rate for threads, rate in values["rates"].items()}})

    @staticmethod
    def cores_here() -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0))

    def to_dict(self) -> dict:
        return asdict(self)

    def next_leg(self) -> Leg | None:
        """The next leg; None at the end."""
        if self.finished:
            return None
        threads = self._untried()
        if threads is not None:
            return Leg(threads, self.trained + TRIAL_SECONDS, self.max_update)
        # A part that is almost over is not worth starting the program for.
        until = next((share * self.seconds for share in REPLAN if self.trained < (share - 0.1) * self.seconds), None)
        return Leg(self.threads, until, self.max_update)

    def measured(self, leg: Leg, *, updates: int, trained: float, rate: float | None) -> None:
        """Notes where a leg ended, and how many updates per second it made; None if it was too short to tell."""
        self.updates, self.trained = updates, trained
        self.rates[leg.threads] = rate if rate is not None else self.rates.get(leg.threads, 0.0)
        self.finished = leg.until is None or updates >= leg.max_update

    @property
    def threads(self) -> int:
        """The fastest number of threads."""
        return max(self.rates, key=self.rates.get, default=1)

    @property
    def max_update(self) -> int:
        """Updates that fit the time, at the rate of the fastest number of threads."""
        rate = self.rates.get(self.threads)
        if not rate:
            return FIRST_GUESS
        return self.updates + max(1, int(rate * (self.seconds - self.trained)))

    def _untried(self) -> int | None:
        """Twice as many threads, as long as that was faster; None if there is nothing more to try."""
        if not self.rates:
            return 1
        most = max(self.rates)
        faster = most == 1 or self.rates[most] > self.rates[most // 2]
        return 2 * most if faster and 2 * most <= self.cores else None
