"""What a symbol is: a byte, a character or a word. Each level counts symbols, makes items of them and turns items back.

An item is what fairseq's indexed datasets store under one number: a run of symbol ids. In bytes and characters it is a
whole file, or one of several runs of a large file; in words it is a line and ends in `</s>`.
"""
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Sequence

import numpy as np
from fairseq.data import Dictionary

from fairseq_expire.data import symbols
from fairseq_expire.data.sources import Piece
from fairseq_expire.data.text import READ_BYTES, OnRead, read_bytes, read_lines, read_text


@dataclass(frozen=True)
class Item:
    """`ids`: symbol ids, int32 [length]; `unknown`: how many of them stand for symbols not in the dictionary."""

    ids: np.ndarray
    unknown: int


class Level(ABC):
    """One way to make symbols of text.

    `chunk_bytes` is the most bytes that are read at once; no item of bytes or characters holds more than that.
    """

    # fairseq fills a dictionary up to a multiple of this.
    padding_factor: int

    @abstractmethod
    def count(self, pieces: Sequence[Piece], *, chunk_bytes: int, on_read: OnRead) -> Mapping[str, int]:
        """How often each symbol occurs."""

    @abstractmethod
    def items(
        self, pieces: Sequence[Piece], *, dictionary: Dictionary, append_eos: bool, chunk_bytes: int, on_read: OnRead
    ) -> Iterator[Item]:
        """The items of the pieces, in order; with `append_eos`, every file ends in `</s>`."""

    def check(self, dictionary: Dictionary) -> None:
        """Raise a ValueError if a symbol of the dictionary cannot be one of this level. Any symbol can be a word."""

    @abstractmethod
    def restore(self, items: Iterator[np.ndarray], *, dictionary: Dictionary) -> Iterator[bytes]:
        """The text of items (ids [length], none unknown), a part at a time; `</s>` that was added is left out."""


class CodeLevel(Level):
    """Symbols that are small whole numbers, so that counting and looking up work on whole arrays."""

    padding_factor = 1
    # Codes are below this.
    num_codes: int

    @staticmethod
    @abstractmethod
    def symbol(code: int) -> str:
        """The name of a code in the dictionary."""

    @staticmethod
    @abstractmethod
    def code(symbol: str) -> int:
        """The inverse of `symbol`."""

    @abstractmethod
    def read(self, piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[np.ndarray]:
        """The codes of a piece, unsigned [up to chunk_bytes], never none."""

    @abstractmethod
    def write(self, codes: np.ndarray) -> bytes:
        """The text that codes, int64 [length], stand for."""

    def count(self, pieces: Sequence[Piece], *, chunk_bytes: int, on_read: OnRead) -> Mapping[str, int]:
        totals = np.zeros(self.num_codes, dtype=np.int64)
        # Counting takes 8 bytes a symbol, and is several times faster where they fit the cache.
        chunk_bytes = min(chunk_bytes, READ_BYTES)
        for piece in pieces:
            for codes in self.read(piece, chunk_bytes=chunk_bytes, on_read=on_read):
                counts = np.bincount(codes)
                totals[: len(counts)] += counts
        return {self.symbol(code): int(totals[code]) for code in np.flatnonzero(totals).tolist()}

    def items(
        self, pieces: Sequence[Piece], *, dictionary: Dictionary, append_eos: bool, chunk_bytes: int, on_read: OnRead
    ) -> Iterator[Item]:
        ids_of = np.full(self.num_codes, dictionary.unk(), dtype=np.int32)
        for symbol, index in _own_symbols(dictionary).items():
            ids_of[self.code(symbol)] = index
        for piece in pieces:
            # One item behind, because only the last one of a file gets `</s>`.
            ids = None
            for codes in self.read(piece, chunk_bytes=chunk_bytes, on_read=on_read):
                if ids is not None:
                    yield _item(ids, dictionary)
                ids = ids_of[codes]
            if append_eos and piece.ends_file:
                ids = np.append(ids, np.int32(dictionary.eos()))
            yield _item(ids, dictionary)

    def check(self, dictionary: Dictionary) -> None:
        for symbol in _own_symbols(dictionary):
            self.code(symbol)

    def restore(self, items: Iterator[np.ndarray], *, dictionary: Dictionary) -> Iterator[bytes]:
        codes_of = np.zeros(len(dictionary), dtype=np.int64)
        for symbol, index in _own_symbols(dictionary).items():
            codes_of[index] = self.code(symbol)
        for ids in items:
            yield self.write(codes_of[ids[ids != dictionary.eos()]])


def _own_symbols(dictionary: Dictionary) -> Dict[str, int]:
    """The symbols that are not fairseq's special ones, with their ids."""
    return {symbol: index for symbol, index in dictionary.indices.items() if index >= dictionary.nspecial}


def _item(ids: np.ndarray, dictionary: Dictionary) -> Item:
    return Item(ids=ids, unknown=int(np.count_nonzero(ids == dictionary.unk())))


class Bytes(CodeLevel):
    num_codes = 256
    symbol = staticmethod(symbols.byte_symbol)
    code = staticmethod(symbols.byte_of)

    def read(self, piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[np.ndarray]:
        for chunk in read_bytes(piece, chunk_bytes=chunk_bytes, on_read=on_read):
            yield np.frombuffer(chunk, dtype=np.uint8)

    def write(self, codes: np.ndarray) -> bytes:
        return codes.astype(np.uint8).tobytes()


class Chars(CodeLevel):
    num_codes = 0x110000
    symbol = staticmethod(symbols.char_symbol)
    code = staticmethod(symbols.code_of)

    def read(self, piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[np.ndarray]:
        for text in read_text(piece, chunk_bytes=chunk_bytes, on_read=on_read):
            yield np.frombuffer(text.encode("utf-32-le"), dtype="<u4")

    def write(self, codes: np.ndarray) -> bytes:
        return codes.astype("<u4").tobytes().decode("utf-32-le").encode("utf-8")


class Words(Level):
    """Words and items exactly as `fairseq-preprocess --only-source` makes them."""

    padding_factor = 8

    def count(self, pieces: Sequence[Piece], *, chunk_bytes: int, on_read: OnRead) -> Mapping[str, int]:
        counts = Counter()
        for words in self._lines(pieces, chunk_bytes=chunk_bytes, on_read=on_read):
            counts.update(words)
        return counts

    def items(
        self, pieces: Sequence[Piece], *, dictionary: Dictionary, append_eos: bool, chunk_bytes: int, on_read: OnRead
    ) -> Iterator[Item]:
        # `append_eos` changes nothing: the last line of a file ends in `</s>` as every line does.
        get, unk, eos = dictionary.indices.get, dictionary.unk(), dictionary.eos()
        for words in self._lines(pieces, chunk_bytes=chunk_bytes, on_read=on_read):
            ids = [get(word, unk) for word in words]
            # A word spelt `<unk>`, as WikiText has many, is not one that the dictionary lacks.
            unknown = ids.count(unk) - words.count(dictionary.unk_word) if unk in ids else 0
            ids.append(eos)
            yield Item(ids=np.array(ids, dtype=np.int32), unknown=unknown)

    def restore(self, items: Iterator[np.ndarray], *, dictionary: Dictionary) -> Iterator[bytes]:
        for ids in items:
            yield (" ".join(dictionary[index] for index in ids[:-1].tolist()) + "\n").encode("utf-8")

    def _lines(self, pieces: Sequence[Piece], *, chunk_bytes: int, on_read: OnRead) -> Iterator[List[str]]:
        for piece in pieces:
            for line in read_lines(piece, chunk_bytes=min(chunk_bytes, READ_BYTES), on_read=on_read):
                # fairseq's tokenize_line normalises white space first, which changes nothing for `split`.
                yield line.split()


LEVELS: Mapping[str, Level] = {"bytes": Bytes(), "chars": Chars(), "words": Words()}
