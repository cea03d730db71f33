"""Words between white space, and lines of them, exactly as ``fairseq-preprocess --only-source`` makes them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from fairseq_expire.tokenizers.chunks import Chunk, at_word
from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.tokenizer import Decoder, EncodedChunk, Encoder, Tokenizer, normalise_line_ends

# The end of a line among words. No UTF-8 text holds a lone surrogate.
LINE_END = "\ud800"
# Among ids, the end of a line and a word that is not in the dictionary, before they become real ids.
END, ABSENT = -1, -2


@dataclass(frozen=True)
class Words(Tokenizer):
    """A symbol is a word. An item is a line and ends in ``</s>``.

    The word ``<pad>`` is unknown, since fairseq leaves the symbol of that name out of every loss and out of lengths.
    """

    name = "words"
    padding_factor = 8
    uses_processes = True
    boundary = staticmethod(at_word)

    def count(self, chunk: Chunk) -> Mapping[str, int]:
        counts = Counter(_words(chunk))
        del counts[LINE_END]
        return counts

    def check(self, dictionary: SymbolTable) -> None:
        """Accepts every dictionary: any symbol can be a word."""

    def make_encoder(self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool) -> Encoder:
        # `append_eos` changes nothing: the last line of a file ends in `</s>`, as every line does.
        table = {**dictionary.indices, LINE_END: END}
        eos, unk, pad = dictionary.eos(), dictionary.unk(), dictionary.pad()

        def encode(chunk: Chunk) -> EncodedChunk:
            words = _words(chunk)
            ids = np.fromiter(map(table.get, words, repeat(ABSENT)), dtype=np.int32, count=len(words))
            at_end, absent = ids == END, np.flatnonzero((ids == ABSENT) | (ids == pad))
            ids[at_end], ids[absent] = eos, unk
            for place in absent.tolist():
                words[place] = dictionary.unk_word
            return EncodedChunk(ids.astype(dtype), np.flatnonzero(at_end) + 1, len(absent), _text(words))

        return encode

    def make_decoder(self, dictionary: SymbolTable) -> Decoder:
        symbols, eos = dictionary.symbols, dictionary.eos()

        def decode(ids: np.ndarray, item_ends: np.ndarray) -> bytes:
            if (ids[item_ends - 1] != eos).any():
                raise ValueError("a line of the data does not end in </s>; make the data again")
            words = [symbols[index] for index in ids.tolist()]
            for end in item_ends.tolist():
                words[end - 1] = LINE_END
            return _text(words)

        return decode

    def stable_length(self, text: bytes) -> int:
        return max(text.rfind(b"\n"), text.rfind(b" ")) + 1

    def make_joiner(self) -> Callable[[bytes], bytes]:
        return _Joiner()


def _words(chunk: Chunk) -> list[str]:
    """The words of a chunk, and ``LINE_END`` where a line ends.

    Text after the last line end of a slice is a line, too.
    """
    text = normalise_line_ends(chunk.decode(chunk.read()))
    if chunk.ends_slice and not text.endswith("\n"):
        text += "\n"
    # fairseq's tokenize_line normalises white space first, which changes nothing for `split`.
    return text.replace("\n", f" {LINE_END} ").split()


def _text(words: list[str]) -> bytes:
    r"""The text of words: a space after each, and "\n" at the end of a line."""
    return "".join([" ".join(words), " " if words else ""]).replace(f"{LINE_END} ", "\n").encode("utf-8")


class _Joiner:
    """Removes the space at the end of each line. The line end may come with the next text."""

    def __init__(self):
        self._space = b""

    def __call__(self, text: bytes) -> bytes:
        text = (self._space + text).replace(b" \n", b"\n")
        self._space = b" " if text.endswith(b" ") else b""
        return text.removesuffix(b" ")
