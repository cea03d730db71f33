"""What a symbol is: the interface that bytes, characters, words and subwords share.

An item is what fairseq's indexed datasets store under one number: a run of symbol ids.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.units import Boundary, Unit

LINE_ENDS = ("keep", "normalise")


@dataclass(frozen=True)
class Encoded:
    """What a unit of text becomes.

    `ids`: symbol ids [length]; `ends`: how many of them come before the end of each item that ends in the unit, int64
    [items], the last item may go on in the next unit; `unknown`: how many ids stand for symbols that the dictionary lacks;
    `text`: what `Tokenizer.decoder` gives for the ids, but made from the text and not from them.
    """

    ids: np.ndarray
    ends: np.ndarray
    unknown: int
    text: bytes


# From ids [length] and the ends of the items among them, as in `Encoded`, to their text.
Decoder = Callable[[np.ndarray, np.ndarray], bytes]


class Tokenizer(ABC):
    """One way to make symbols of text. Subclasses are dataclasses whose fields are their options."""

    # fairseq fills a dictionary up to a multiple of this.
    padding_factor = 1
    # Whether units are worked on in processes, or in threads, which is cheaper where Python is not what takes the time.
    in_processes = False
    # Where a text may be cut into units.
    boundary: Boundary

    @property
    def options(self) -> dict[str, Any]:
        """Its options, for the manifest."""
        return asdict(self)

    def learn(self, units: Sequence[Unit], folder: Path) -> None:
        """Make of train's units what is needed beside a dictionary, in `folder`, unless an earlier run did."""

    def adopt(self, source: Path, folder: Path) -> None:
        """Instead of learning: copy that from the data in `source`. Raises ValueError if it is not there."""

    def load(self, folder: Path) -> None:
        """Read what was learnt from `folder`, before anything below is called."""

    def counted(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units that the dictionary's counts are taken from."""
        return units

    @abstractmethod
    def count(self, unit: Unit) -> Mapping[str, int]:
        """How often each symbol occurs."""

    def more_symbols(self) -> Iterable[str]:
        """Symbols that the dictionary has even if they were not counted."""
        return ()

    @abstractmethod
    def check(self, dictionary: SymbolTable) -> None:
        """Raise a ValueError if the dictionary is that of another level.

        It may have symbols that no text of this level becomes, as fairseq's tools add them, and may lack some that text
        would become, which are unknown then.
        """

    @abstractmethod
    def encoder(
        self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool
    ) -> Callable[[Unit], Encoded]:
        """The function that makes ids of a unit; with `append_eos`, a file ends in `</s>`; an item is a unit, or with
        `item_per_file` a whole file (in words it is always a line)."""

    @abstractmethod
    def decoder(self, dictionary: SymbolTable) -> Decoder:
        """The inverse, without the `</s>` that were added; symbols that were unknown have one that stands for them all."""

    @abstractmethod
    def settled(self, text: bytes) -> int:
        """How many bytes of a text in UTF-8 that goes on become the same symbols whatever comes next."""

    def joiner(self) -> Callable[[bytes], bytes]:
        """What the texts of consecutive units, or of runs of ids, go through to join to the text of all."""
        return bytes


def own_symbols(dictionary: SymbolTable) -> dict[str, int]:
    """The symbols that are not fairseq's special ones, with their ids."""
    return {symbol: index for symbol, index in dictionary.indices.items() if index >= dictionary.nspecial}


def is_extra(symbol: str) -> bool:
    """Whether it is one that dictionaries of every level may have: fairseq fills them up with it (`--padding-factor`), or it
    has the form of a special symbol, or no characters."""
    return re.fullmatch(r"madeupword\d{4,}|<.+>|\[.+\]|", symbol) is not None


def item_ends(length: int, unit: Unit, item_per_file: bool) -> np.ndarray:
    """The ends of items in a unit of `length` ids, where an item is a unit or a file."""
    return np.array([length] if unit.ends_piece or not item_per_file else [], dtype=np.int64)


def whole_chars(text: bytes) -> int:
    r"""How many bytes of a text in UTF-8 come before a character, or "\r\n", that has only begun at its end."""
    if text.endswith(b"\r"):
        return len(text) - 1
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return len(text) - back if length > back else len(text)
        if byte < 0x80:
            break
    return len(text)


def normalise_line_ends(text: str) -> str:
    r"""Every "\r\n" and "\r" as "\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}, expected one of {', '.join(choices)}")
