"""The number of updates that fit the time of a training, on a machine that may be busy.

A learning rate that falls to zero needs the number of updates in advance. So the training is made in legs, each of
which continues the one before: first a few seconds with each number of threads, then the rest in several parts. Before
each part the number of updates is estimated again.
"""

import os
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

# Seconds to measure with each number of threads.
TRIAL_SECONDS = 12
# Shares of the whole time at which the number of updates is estimated again.
REPLAN = (0.5, 0.8)
# Number of updates of the schedule before anything is measured.
FIRST_GUESS = 4000


class Leg(NamedTuple):
    """A part of a training.

    Args:
        threads: number of threads.
        until: seconds of training, from the start of the first leg, at which it ends; None for after the last update.
        max_update: number of updates of the learning rate schedule.
    """

    threads: int
    until: float | None
    max_update: int


@dataclass
class Pace:
    """Measurements so far, as plain values for a file.

    Args:
        seconds: time for the whole training.
        cores: number of cores that may be used.
        updates: number of updates so far.
        trained: seconds of training so far.
        rates: updates per second by number of threads.
        finished: True after the last leg.
    """

    seconds: float
    cores: int
    updates: int = 0
    trained: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def of(cls, values: dict) -> "Pace":
        """Returns the measurements in the JSON of `to_dict`, whose keys are strings."""
        return cls(**{**values, "rates": {int(threads): rate for threads, rate in values["rates"].items()}})

    @staticmethod
    def cores_here() -> int:
        """Returns the number of cores that this process may use."""
        return len(os.sched_getaffinity(0))

    def to_dict(self) -> dict:
        """Returns plain values for a JSON file."""
        return asdict(self)

    def next_leg(self) -> Leg | None:
        """Returns the next leg; None at the end."""
        if self.finished:
            return None
        threads = self._untried()
        if threads is not None:
            return Leg(threads, self.trained + TRIAL_SECONDS, self.max_update)
        # A part that would end soon is skipped, since each one starts the program anew.
        until = next((share * self.seconds for share in REPLAN if self.trained < (share - 0.1) * self.seconds), None)
        return Leg(self.threads, until, self.max_update)

    def measured(self, leg: Leg, *, updates: int, trained: float, rate: float | None) -> None:
        """Records updates and seconds at the end of a leg, and its updates per second (None if it was too short)."""
        self.updates, self.trained = updates, trained
        self.rates[leg.threads] = rate if rate is not None else self.rates.get(leg.threads, 0.0)
        self.finished = leg.until is None or updates >= leg.max_update

    @property
    def threads(self) -> int:
        """The fastest number of threads."""
        return max(self.rates, key=self.rates.get, default=1)

    @property
    def max_update(self) -> int:
        """Number of updates that fit the time with the fastest number of threads."""
        rate = self.rates.get(self.threads)
        if not rate:
            return FIRST_GUESS
        return self.updates + max(1, int(rate * (self.seconds - self.trained)))

    def _untried(self) -> int | None:
        """Returns twice as many threads while more are faster; None if no number remains to be tried."""
        if not self.rates:
            return 1
        most = max(self.rates)
        faster = most == 1 or self.rates[most] > self.rates[most // 2]
        return 2 * most if faster and 2 * most <= self.cores else None
