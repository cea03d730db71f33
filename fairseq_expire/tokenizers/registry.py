"""The levels by name."""

from collections.abc import Mapping
from typing import Any

from fairseq_expire.tokenizers.base import Tokenizer
from fairseq_expire.tokenizers.bytes_and_chars import Bytes, Chars
from fairseq_expire.tokenizers.subwords import Subwords
from fairseq_expire.tokenizers.words import Words

LEVELS: Mapping[str, type[Tokenizer]] = {"bytes": Bytes, "chars": Chars, "words": Words, "subword": Subwords}


def make_level(name: str, options: Mapping[str, Any]) -> Tokenizer:
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
