"""dict.txt, read without fairseq: symbols with the ids that fairseq gives them, and the digest that models store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

# Every dictionary of fairseq begins with these.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
# At the end of a line: the symbol may have occurred before, and gets the id of this line.
OVERWRITE = "#fairseq:overwrite"
# The field of a checkpoint's model options, and of an export's configuration, that holds the digest of its dictionary.
DIGEST = "dictionary_digest"
# The same for the dictionary of the labels, where a model predicts labels.
LABEL_DIGEST = "label_dictionary_digest"


class SymbolTable(Protocol):
    """The interface of a dictionary, which fairseq's own and :class:`PlainDictionary` have."""

    symbols: list[str]
    indices: dict[str, int]
    nspecial: int
    unk_word: str

    def __len__(self) -> int: ...

    def index(self, symbol: str) -> int: ...

    def bos(self) -> int: ...

    def pad(self) -> int: ...

    def eos(self) -> int: ...

    def unk(self) -> int: ...


class PlainDictionary:
    """Symbols and their ids, as ``fairseq.data.Dictionary`` has them: the special ones, then the others in their order.

    Args:
        symbols: those that are not special. One that occurs twice has the id of the later place.
    """

    nspecial = len(SPECIAL_SYMBOLS)
    unk_word = SPECIAL_SYMBOLS[3]

    def __init__(self, symbols: Sequence[str] = ()):
        self.symbols = [*SPECIAL_SYMBOLS, *symbols]
        self.indices = {symbol: number for number, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def index(self, symbol: str) -> int:
        """The id of a symbol; that of ``<unk>`` if there is no such symbol."""
        return self.indices.get(symbol, self.unk())

    def bos(self) -> int:
        """The id of ``<s>``."""
        return 0

    def pad(self) -> int:
        """The id of ``<pad>``."""
        return 1

    def eos(self) -> int:
        """The id of ``</s>``."""
        return 2

    def unk(self) -> int:
        """The id of ``<unk>``."""
        return 3

    @classmethod
    def load(cls, path: str | Path) -> "PlainDictionary":
        """Reads a dict.txt. It accepts what fairseq's own reader accepts, with the same meaning, and nothing else.

        Each line holds a symbol, which may be empty or hold spaces, then a space and a whole number.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line has another form, or the symbol of an earlier line; or the file is not UTF-8.
        """
        symbols, seen = [], set(SPECIAL_SYMBOLS)
        # Unlike `splitlines`, a file ends lines only at "\n", "\r" and "\r\n". Symbols may hold other line breaks.
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                symbol, space, count = line.rstrip().rpartition(" ")
                overwrite = bool(space) and count == OVERWRITE
                if overwrite:
                    symbol, space, count = symbol.rpartition(" ")
                if not space or not _is_whole_number(count):
                    raise ValueError(f"line {number} is {line.rstrip()!r}, expected a symbol, a space and a count")
                if symbol in seen and not overwrite:
                    raise ValueError(f"line {number}: {symbol!r} is there already")
                seen.add(symbol)
                symbols.append(symbol)
        return cls(symbols)


def _is_whole_number(text: str) -> bool:
    """Returns True if Python reads the text as an integer, as in "-1" and "1_000", in any script."""
    try:
        int(text)
    except ValueError:
        return False
    return True


def dictionary_digest(symbols: Sequence[str]) -> str:
    """SHA-256 of the symbols in their order, in hexadecimal. It tells a dictionary from others of the same size."""
    return hashlib.sha256("\n".join(symbols).encode("utf-8")).hexdigest()


def check_dictionary(digest: str | None, symbols: Sequence[str], *, model: str, dictionary: str) -> None:
    """Raises ValueError if a model was trained with another dictionary. Every place that reads a model calls this.

    Args:
        digest: the digest stored with the model. With None, which models of other packages have, nothing is checked.
        symbols: all symbols of the dictionary to read the model with, in order.
        model: the name of the model in the error.
        dictionary: the name of the dictionary in the error.
    """
    if digest is not None and digest != dictionary_digest(symbols):
        raise ValueError(
            f"{model} was trained with another dictionary than {dictionary} ({len(symbols)} symbols): give the data it "
            "was trained on, or prepare the text with its own dict.txt (data_prep/text.py --dict)"
        )
