"""dict.txt, read without fairseq: its symbols under the numbers that fairseq gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fairseq_expire.tokenizers.base import Tokenizer

# What every dictionary of fairseq begins with.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
# At the end of a line: the symbol may have occurred before, and the later place is the one that counts.
OVERWRITE = "#fairseq:overwrite"


class SymbolTable(Protocol):
    """What is asked of a dictionary here; fairseq's own and :class:`PlainDictionary` both have it."""

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
    """Symbols and their numbers, as ``fairseq.data.Dictionary`` has them: the special ones, then the others in their order.

    Args:
        symbols: those that are not special; of one that occurs twice the later place counts.
    """

    nspecial = len(SPECIAL_SYMBOLS)
    unk_word = SPECIAL_SYMBOLS[3]

    def __init__(self, symbols: Sequence[str] = ()):
        self.symbols = [*SPECIAL_SYMBOLS, *symbols]
        self.indices = {symbol: number for number, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def index(self, symbol: str) -> int:
        """The number of a symbol, that of ``<unk>`` for one that is not there."""
        return self.indices.get(symbol, self.unk())

    def bos(self) -> int:
        return 0

    def pad(self) -> int:
        return 1

    def eos(self) -> int:
        return 2

    def unk(self) -> int:
        return 3

    @classmethod
    def load(cls, path: str | Path) -> "PlainDictionary":
        """Read a dict.txt: on each line a symbol, which may be empty or hold spaces, then a space and a whole number.

        What fairseq's own reader takes is taken, with the same meaning, and what it refuses is refused.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a line is of another form, or has a symbol that an earlier line has; or it is not UTF-8.
        """
        symbols, seen = [], set(SPECIAL_SYMBOLS)
        # Unlike `splitlines`, a file ends its lines only at "\n", "\r" and "\r\n": other line breaks may be in symbols.
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


def load_dictionary(path: Path, level: "Tokenizer", *, given: Path | None = None) -> PlainDictionary:
    """Raises ValueError, naming the file that was given, if it is no dictionary or not one of this level."""
    try:
        dictionary = PlainDictionary.load(path)
        level.check(dictionary)
    except ValueError as error:
        name = type(level).__name__.lower()
        raise ValueError(
            f"{given or path}: not a dictionary of {name} ({error}); give the dict.txt of data of this level"
        ) from None
    return dictionary
