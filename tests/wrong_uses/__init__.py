"""Wrong uses of the commands, each with the one sentence that the user sees; test_wrong_uses.py tries them all."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional


class Use(NamedTuple):
    """A wrong use.

    Every one is tried in a folder of its own, the current one, in which lie ``data`` (made by data_prep/text.py --level bytes)
    and ``model.pt`` (of a short training run on it).

    Args:
        name: of the test.
        command: "train", "eval-lm" or "validate" of fairseq, or a script of data_prep.
        options: what is given beside what a right use has; given last, it wins.
        sentence: a pattern, found in the last line that the user sees.
        damage: what is done to the folder before.
        data: the argument of a fairseq command.
        arch: what is trained, with the options of tests/commands.py.
    """

    name: str
    command: str
    options: str
    sentence: str
    damage: Callable[[Path], None] | None = None
    data: str = "data"
    arch: str = "expire_span_lm"
