"""Bytes and characters: symbols that are small whole numbers, so that counting and looking up work on whole arrays."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fairseq_expire.tokenizers import symbols
from fairseq_expire.tokenizers.base import (
    LINE_ENDS,
    Decoder,
    Encoded,
    Tokenizer,
    check_choice,
    is_extra,
    item_ends,
    normalise_line_ends,
    own_symbols,
    whole_chars,
)
from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.units import Unit, at_byte, at_char

NEWLINE = 0x0A
NEWLINES = ("keep", "drop", "eos")

# Every pair of bytes in the order of the number that the two make where they lie side by side in memory, [65536, 2].
BYTE_PAIRS = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)


class CodeTokenizer(Tokenizer):
    """Symbols that stand for codes below `num_codes`; `placeholder` is the code of text that unknown symbols become."""

    num_codes: int
    placeholder: int

    @staticmethod
    @abstractmethod
    def symbol(code: int) -> str:
        """The name of a code in the dictionary."""

    @staticmethod
    @abstractmethod
    def code(symbol: str) -> int:
        """The inverse of `symbol`."""

    @abstractmethod
    def read(self, unit: Unit) -> tuple[bytes, np.ndarray]:
        """The text of a unit, and its codes, unsigned [length]."""

    @abstractmethod
    def write(self, codes: np.ndarray) -> bytes:
        """The text that codes, int64 [length], stand for."""

    def special_codes(self, dictionary: SymbolTable) -> dict[int, int]:
        """The ids of codes that have no symbol of their own in the dictionary."""
        return {}

    def frequencies(self, codes: np.ndarray) -> np.ndarray:
        """How often each code occurs, int64 [up to num_codes]."""
        return np.bincount(codes)

    def look_up(self, table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The function from codes to the entries of the table [num_codes] at them."""
        return table.take

    def count(self, unit: Unit) -> Mapping[str, int]:
        frequencies = self.frequencies(self.read(unit)[1])
        return {self.symbol(code): int(frequencies[code]) for code in np.flatnonzero(frequencies).tolist()}

    def check(self, dictionary: SymbolTable) -> None:
        symbols = own_symbols(dictionary)
        names = [symbol for symbol in symbols if self._code_of(symbol) is not None]
        others = [symbol for symbol in symbols if self._code_of(symbol) is None and not is_extra(symbol)]
        # A dictionary of words has names of bytes and characters, too, but few among its symbols.
        if others and len(others) >= len(names):
            # Raises what is wrong.
            self.code(others[0])

    def _code_of(self, symbol: str) -> int | None:
        """Returns what `code` gives; None for a symbol that is no name of a code."""
        try:
            return self.code(symbol)
        except ValueError:
            return None

    def encoder(
        self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool
    ) -> Callable[[Unit], Encoded]:
        unk, eos = dictionary.unk(), dtype(dictionary.eos())
        table = np.full(self.num_codes, unk, dtype=dtype)
        for symbol, index in own_symbols(dictionary).items():
            code = self._code_of(symbol)
            if code is not None:
                table[code] = index
        for code, index in self.special_codes(dictionary).items():
            table[code] = index
        look_up = self.look_up(table)

        def encode(unit: Unit) -> Encoded:
            text, codes = self.read(unit)
            ids = look_up(codes)
            absent = ids == unk
            unknown = int(np.count_nonzero(absent))
            if unknown:
                text = self.write(np.where(absent, self.placeholder, codes.astype(np.int64)))
            if append_eos and unit.ends_file:
                ids = np.append(ids, eos)
            return Encoded(ids=ids, ends=item_ends(len(ids), unit, item_per_file), unknown=unknown, text=text)

        return encode

    def decoder(self, dictionary: SymbolTable) -> Decoder:
        special = {index: code for code, index in self.special_codes(dictionary).items()}
        codes_of = np.full(len(dictionary), self.placeholder, dtype=np.int64)
        # Not from `own_symbols`: a symbol that a later line overwrites has two ids.
        for index, symbol in enumerate(dictionary.symbols[dictionary.nspecial :], start=dictionary.nspecial):
            code = self._code_of(symbol)
            if code is not None:
                codes_of[index] = code
        for index, code in special.items():
            codes_of[index] = code
        eos = dictionary.eos()

        def decode(ids: np.ndarray, ends: np.ndarray) -> bytes:
            return self.write(codes_of[ids if eos in special else ids[ids != eos]])

        return decode


@dataclass(frozen=True)
class Bytes(CodeTokenizer):
    r"""A symbol is a byte. `newlines` says what becomes of "\n": an ordinary symbol ("keep"), nothing, or `</s>`.

    Raises:
        ValueError: if `newlines` is none of "keep", "drop", "eos".
    """

    newlines: str = "keep"

    num_codes = 256
    placeholder = ord("?")
    boundary = staticmethod(at_byte)
    symbol = staticmethod(symbols.byte_symbol)
    code = staticmethod(symbols.byte_of)

    def __post_init__(self):
        check_choice("newlines", self.newlines, NEWLINES)

    def read(self, unit: Unit) -> tuple[bytes, np.ndarray]:
        content = unit.read()
        if self.newlines == "drop":
            content = content.replace(b"\n", b"")
        return content, np.frombuffer(content, dtype=np.uint8)

    def write(self, codes: np.ndarray) -> bytes:
        return codes.astype(np.uint8).tobytes()

    def settled(self, text: bytes) -> int:
        return len(text)

    def special_codes(self, dictionary: SymbolTable) -> dict[int, int]:
        return {NEWLINE: dictionary.eos()} if self.newlines == "eos" else {}

    def frequencies(self, codes: np.ndarray) -> np.ndarray:
        # Two bytes at a time: twice as fast, and each byte of a pair is counted in its own sum.
        pairs = np.bincount(_in_pairs(codes), minlength=1 << 16).reshape(256, 256)
        frequencies = pairs.sum(axis=0) + pairs.sum(axis=1)
        if len(codes) % 2:
            frequencies[codes[-1]] += 1
        if self.newlines == "eos":
            frequencies[NEWLINE] = 0
        return frequencies

    def look_up(self, table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        # No dictionary of bytes needs wider ids than uint16, so two of them are a uint32.
        pair_table = np.ascontiguousarray(table[BYTE_PAIRS]).view(np.uint32).ravel()

        def look_up(codes: np.ndarray) -> np.ndarray:
            ids = pair_table.take(_in_pairs(codes)).view(table.dtype)
            return np.append(ids, table[codes[-1]]) if len(codes) % 2 else ids

        return look_up


def _in_pairs(codes: np.ndarray) -> np.ndarray:
    """Bytes, uint8 [length], as uint16 [length // 2]; an odd one out is left over."""
    return codes[: len(codes) // 2 * 2].view(np.uint16)


@dataclass(frozen=True)
class Chars(CodeTokenizer):
    r"""A symbol is a Unicode character. `line_ends` says whether "\r\n" and "\r" become "\n" ("normalise") or stay.

    Raises:
        ValueError: if `line_ends` is none of "keep", "normalise".
    """

    line_ends: str = "keep"

    num_codes = 0x110000
    # What Unicode has for a character that cannot be shown.
    placeholder = 0xFFFD
    boundary = staticmethod(at_char)
    symbol = staticmethod(symbols.char_symbol)
    code = staticmethod(symbols.code_of)

    def __post_init__(self):
        check_choice("line_ends", self.line_ends, LINE_ENDS)

    def read(self, unit: Unit) -> tuple[bytes, np.ndarray]:
        content = unit.read()
        text = unit.decode(content)
        if self.line_ends == "normalise" and "\r" in text:
            text = normalise_line_ends(text)
            content = text.encode("utf-8")
        if text.isascii():
            return content, np.frombuffer(content, dtype=np.uint8)
        return content, np.frombuffer(text.encode("utf-32-le"), dtype="<u4")

    def settled(self, text: bytes) -> int:
        return whole_chars(text)

    def write(self, codes: np.ndarray) -> bytes:
        return codes.astype("<u4").tobytes().decode("utf-32-le").encode("utf-8")
