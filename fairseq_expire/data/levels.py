"""The levels by name."""
from typing import Any, Mapping, Type

from fairseq_expire.data.codes import Bytes, Chars
from fairseq_expire.data.level import Level
from fairseq_expire.data.subwords import Subwords
from fairseq_expire.data.words import Words

LEVELS: Mapping[str, Type[Level]] = {"bytes": Bytes, "chars": Chars, "words": Words, "subword": Subwords}


def make_level(name: str, options: Mapping[str, Any]) -> Level:
    """A level with its options.

    Raises:
        ValueError: there is no such level, or it has no such option.
    """
    if name not in LEVELS:
        raise ValueError(f"level is {name!r}, expected one of {', '.join(LEVELS)}")
    try:
        return LEVELS[name](**options)
    except TypeError:
        raise ValueError(f"level {name} has no such options: {dict(options)}") from None
