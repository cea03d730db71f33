"""Wrong uses of the commands, each with the message that the user sees; test_wrong_uses.py tries them all."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Use(NamedTuple):
    """A wrong use.

    Each one runs in a new current folder with ``data`` (made by data_prep/text.py --level bytes) and ``model.pt`` (of a
    short training run on this data).

    Args:
        name: of the test.
        command: "train", "eval-lm" or "validate" of fairseq, or a script of data_prep.
        options: added to those of a right use; the last value of an option counts.
        message: a pattern that the last line of the output matches.
        damage: changes the folder before the command runs.
        data: the argument of a fairseq command.
        arch: the architecture to train, with its options in tests/commands.py.
    """

    name: str
    command: str
    options: str
    message: str
    damage: Callable[[Path], None] | None = None
    data: str = "data"
    arch: str = "expire_span_lm"
