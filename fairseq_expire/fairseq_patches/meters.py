"""A meter for a maximum, which fairseq has none of."""

from fairseq import utils
from fairseq.logging import meters


class MaxMeter(meters.Meter):
    """The largest of the values logged."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.max = None

    def update(self, value):
        value = utils.item(value)
        self.max = value if self.max is None else max(self.max, value)

    def state_dict(self):
        return {"max": self.max}

    def load_state_dict(self, state_dict):
        self.max = state_dict["max"]

    @property
    def smoothed_value(self) -> float:
        return meters.safe_round(self.max, 1) if self.max is not None else 0.0


def install() -> None:
    """Adds the meter to fairseq's module of meters: a checkpoint names the class, and fairseq looks it up there."""
    meters.MaxMeter = MaxMeter
