"""Words between white space, and lines of them, exactly as `fairseq-preprocess --only-source` makes them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from fairseq_expire.tokenizers.base import Decoder, Encoded, Tokenizer, normalise_line_ends
from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.units import Unit, at_word

# Stands among words for the end of a line: no UTF-8 text can hold a lone surrogate.
LINE_END = "\ud800"
# Stand among ids, where they are found, for the end of a line and for a word that is not in the dictionary.
END, ABSENT = -1, -2


@dataclass(frozen=True)
class Words(Tokenizer):
    """A symbol is a word; an item is a line, and ends in `</s>`.

    The word `<pad>` is unknown, since fairseq leaves the symbol of that name out of every loss and out of lengths.
    """

    padding_factor = 8
    in_processes = True
    boundary = staticmethod(at_word)

    def count(self, unit: Unit) -> Mapping[str, int]:
        counts = Counter(_words(unit))
        del counts[LINE_END]
        return counts

    def check(self, dictionary: SymbolTable) -> None:
        """Any symbol can be a word."""

    def encoder(
        self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool
    ) -> Callable[[Unit], Encoded]:
        # `append_eos` changes nothing: the last line of a file ends in `</s>` as every line does.
        table = {**dictionary.indices, LINE_END: END}
        eos, unk, pad = dictionary.eos(), dictionary.unk(), dictionary.pad()

        def encode(unit: Unit) -> Encoded:
            words = _words(unit)
            ids = np.fromiter(map(table.get, words, repeat(ABSENT)), dtype=np.int32, count=len(words))
            at_end, absent = ids == END, np.flatnonzero((ids == ABSENT) | (ids == pad))
            ids[at_end], ids[absent] = eos, unk
            for place in absent.tolist():
                words[place] = dictionary.unk_word
            return Encoded(
                ids=ids.astype(dtype), ends=np.flatnonzero(at_end) + 1, unknown=len(absent), text=_spaced(words)
            )

        return encode

    def decoder(self, dictionary: SymbolTable) -> Decoder:
        symbols, eos = dictionary.symbols, dictionary.eos()

        def decode(ids: np.ndarray, ends: np.ndarray) -> bytes:
            if (ids[ends - 1] != eos).any():
                raise ValueError("a line of the data does not end in </s>; make the data again")
            words = [symbols[index] for index in ids.tolist()]
            for end in ends.tolist():
                words[end - 1] = LINE_END
            return _spaced(words)

        return decode

    def settled(self, text: bytes) -> int:
        return max(text.rfind(b"\n"), text.rfind(b" ")) + 1

    def joiner(self) -> Callable[[bytes], bytes]:
        return _Joiner()


def _words(unit: Unit) -> list[str]:
    """The words of a unit, and LINE_END where a line ends; text after the last line end of a piece is a line too."""
    text = normalise_line_ends(unit.decode(unit.read()))
    if unit.ends_piece and not text.endswith("\n"):
        text += "\n"
    # fairseq's tokenize_line normalises white space first, which changes nothing for `split`.
    return text.replace("\n", f" {LINE_END} ").split()


def _spaced(words: list[str]) -> bytes:
    r"""The text of words, a space after each and "\n" at the end of a line."""
    return "".join([" ".join(words), " " if words else ""]).replace(f"{LINE_END} ", "\n").encode("utf-8")


class _Joiner:
    """Takes away the space at the end of each line, which may come with the next text."""

    def __init__(self):
        self.held = b""

    def __call__(self, text: bytes) -> bytes:
        text = (self.held + text).replace(b" \n", b"\n")
        self.held = b" " if text.endswith(b" ") else b""
        return text.removesuffix(b" ")
