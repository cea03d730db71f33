r"""Bytes and characters: symbols that stand for code points, and their names in dict.txt.

No name holds white space, and every name can be read back. A byte has the name that fairseq's ``--bpe bytes`` gives it,
one character each. A character is its own name, as in fairseq's ``--bpe characters``, unless it is white space, not
printable or U+2581: those are named by number, such as U+000A for "\n". Both name a space U+2581.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairseq_expire.tokenizers.chunks import Chunk, at_byte, at_char
from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.tokenizer import (
    LINE_ENDS,
    Decoder,
    EncodedChunk,
    Encoder,
    Tokenizer,
    check_choice,
    is_filler,
    item_ends,
    normalise_line_ends,
    own_symbols,
    whole_chars,
)

NEWLINE = 0x0A
NEWLINES = ("keep", "drop", "eos")

SPACE, SPACE_NAME = " ", "\u2581"
# As in fairseq's table: Latin-1, and bytes that are not printable there are named by the character 256 further on.
BYTE_TO_NAME = {byte: chr(byte) if chr(byte).isprintable() else chr(256 + byte) for byte in range(256)}
NAME_TO_BYTE = {name: byte for byte, name in BYTE_TO_NAME.items()}


def byte_symbol(byte: int) -> str:
    """The name of a byte, 0 to 255."""
    # The space is the only byte that fairseq's table maps to white space.
    return BYTE_TO_NAME[byte].replace(SPACE, SPACE_NAME)


def byte_of(symbol: str) -> int:
    """The inverse of :func:`byte_symbol`.

    Raises:
        ValueError: no byte has this name.
    """
    byte = NAME_TO_BYTE.get(SPACE if symbol == SPACE_NAME else symbol)
    if byte is None or byte_symbol(byte) != symbol:
        raise ValueError(f"symbol {symbol!r}: expected a name of a byte; was the dictionary made with --level bytes?")
    return byte


def char_symbol(code_point: int) -> str:
    """The name of the character with this code point."""
    char = chr(code_point)
    if char == SPACE:
        return SPACE_NAME
    # Of all that is printable only the space is white space. Longer names cannot be mistaken for a single character.
    return f"U+{code_point:04X}" if char == SPACE_NAME or not char.isprintable() else char


def code_point_of(symbol: str) -> int:
    """The inverse of :func:`char_symbol`. It does not depend on which characters this version of Python can print.

    Raises:
        ValueError: no character has this name.
    """
    if symbol == SPACE_NAME:
        return ord(SPACE)
    if len(symbol) == 1:
        return ord(symbol)
    digits = symbol.removeprefix("U+")
    try:
        code_point = int(digits, 16)
    except ValueError:
        code_point = -1
    # A surrogate, half of a pair in UTF-16, is not a character.
    if not 0 <= code_point < 0x110000 or 0xD800 <= code_point < 0xE000 or symbol != f"U+{code_point:04X}":
        raise ValueError(
            f"symbol {symbol!r}: expected a name of a character; was the dictionary made with --level chars?"
        )
    return code_point


class CodePointTokenizer(Tokenizer):
    """The base of bytes and characters. Each symbol stands for one code point; the code point of a byte is its value.

    Attributes:
        num_code_points: all code points are below this.
        placeholder: the code point that text of unknown symbols becomes.
    """

    num_code_points: int
    placeholder: int

    @staticmethod
    @abstractmethod
    def symbol(code_point: int, /) -> str:
        """The name of a code point in the dictionary."""

    @staticmethod
    @abstractmethod
    def code_point(symbol: str, /) -> int:
        """The inverse of ``symbol``."""

    @abstractmethod
    def split(self, chunk: Chunk) -> tuple[bytes, np.ndarray]:
        """The text of a chunk after its options are applied, and its code points, unsigned [length]."""

    @abstractmethod
    def join(self, code_points: np.ndarray) -> bytes:
        """The text of code points, int64 [length]."""

    def special_ids(self, dictionary: SymbolTable) -> dict[int, int]:
        """The ids of code points that have no symbol of their own in the dictionary."""
        return {}

    def frequencies(self, code_points: np.ndarray) -> np.ndarray:
        """Counts how often each code point occurs, int64 [up to num_code_points]."""
        return np.bincount(code_points)

    def count(self, chunk: Chunk) -> Mapping[str, int]:
        frequencies = self.frequencies(self.split(chunk)[1])
        return {self.symbol(code): int(frequencies[code]) for code in np.flatnonzero(frequencies).tolist()}

    def check(self, dictionary: SymbolTable) -> None:
        symbols = own_symbols(dictionary)
        names = [symbol for symbol in symbols if self._code_point_or_none(symbol) is not None]
        others = [symbol for symbol in symbols if self._code_point_or_none(symbol) is None and not is_filler(symbol)]
        # A dictionary of words holds names of bytes and characters, too, but few among its symbols.
        if others and len(others) >= len(names):
            # Raises the error of the first of them.
            self.code_point(others[0])

    def _code_point_or_none(self, symbol: str) -> int | None:
        try:
            return self.code_point(symbol)
        except ValueError:
            return None

    def make_encoder(self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool) -> Encoder:
        unk, eos = dictionary.unk(), dtype(dictionary.eos())
        table: np.ndarray = np.full(self.num_code_points, unk, dtype=dtype)
        for symbol, index in own_symbols(dictionary).items():
            code_point = self._code_point_or_none(symbol)
            if code_point is not None:
                table[code_point] = index
        for code_point, index in self.special_ids(dictionary).items():
            table[code_point] = index

        def encode(chunk: Chunk) -> EncodedChunk:
            text, code_points = self.split(chunk)
            ids = table.take(code_points)
            absent = ids == unk
            num_unknown = int(np.count_nonzero(absent))
            if num_unknown:
                text = self.join(np.where(absent, self.placeholder, code_points.astype(np.int64)))
            if append_eos and chunk.ends_file:
                ids = np.append(ids, eos)
            return EncodedChunk(ids, item_ends(len(ids), chunk, item_per_file), num_unknown, text)

        return encode

    def make_decoder(self, dictionary: SymbolTable) -> Decoder:
        special = {index: code_point for code_point, index in self.special_ids(dictionary).items()}
        code_points = np.full(len(dictionary), self.placeholder, dtype=np.int64)
        # Not from `own_symbols`: a symbol that a later line overwrites has two ids.
        for index, symbol in enumerate(dictionary.symbols[dictionary.nspecial :], start=dictionary.nspecial):
            code_point = self._code_point_or_none(symbol)
            if code_point is not None:
                code_points[index] = code_point
        for index, code_point in special.items():
            code_points[index] = code_point
        eos = dictionary.eos()

        def decode(ids: np.ndarray, item_ends: np.ndarray) -> bytes:
            return self.join(code_points[ids if eos in special else ids[ids != eos]])

        return decode


@dataclass(frozen=True)
class Bytes(CodePointTokenizer):
    r"""A symbol is a byte.

    Args:
        newlines: what "\n" becomes: a symbol like any other byte ("keep"), nothing ("drop") or ``</s>`` ("eos").

    Raises:
        ValueError: ``newlines`` is none of these.
    """

    newlines: str = "keep"

    name = "bytes"
    num_code_points = 256
    placeholder = ord("?")
    boundary = staticmethod(at_byte)
    symbol = staticmethod(byte_symbol)
    code_point = staticmethod(byte_of)

    def __post_init__(self):
        check_choice("newlines", self.newlines, NEWLINES)

    def split(self, chunk: Chunk) -> tuple[bytes, np.ndarray]:
        content = chunk.read()
        if self.newlines == "drop":
            content = content.replace(b"\n", b"")
        return content, np.frombuffer(content, dtype=np.uint8)

    def join(self, code_points: np.ndarray) -> bytes:
        return code_points.astype(np.uint8).tobytes()

    def stable_length(self, text: bytes) -> int:
        return len(text)

    def special_ids(self, dictionary: SymbolTable) -> dict[int, int]:
        return {NEWLINE: dictionary.eos()} if self.newlines == "eos" else {}

    def frequencies(self, code_points: np.ndarray) -> np.ndarray:
        frequencies = np.bincount(code_points, minlength=self.num_code_points)
        if self.newlines == "eos":
            frequencies[NEWLINE] = 0
        return frequencies


@dataclass(frozen=True)
class Chars(CodePointTokenizer):
    r"""A symbol is a Unicode character.

    Args:
        line_ends: "normalise" replaces "\r\n" and "\r" by "\n"; "keep" keeps them.

    Raises:
        ValueError: ``line_ends`` is none of these.
    """

    line_ends: str = "keep"

    name = "chars"
    num_code_points = 0x110000
    # U+FFFD, Unicode's replacement character.
    placeholder = 0xFFFD
    boundary = staticmethod(at_char)
    symbol = staticmethod(char_symbol)
    code_point = staticmethod(code_point_of)

    def __post_init__(self):
        check_choice("line_ends", self.line_ends, LINE_ENDS)

    def split(self, chunk: Chunk) -> tuple[bytes, np.ndarray]:
        content = chunk.read()
        text = chunk.decode(content)
        if self.line_ends == "normalise" and "\r" in text:
            text = normalise_line_ends(text)
            content = text.encode("utf-8")
        if text.isascii():
            return content, np.frombuffer(content, dtype=np.uint8)
        return content, np.frombuffer(text.encode("utf-32-le"), dtype="<u4")

    def join(self, code_points: np.ndarray) -> bytes:
        return code_points.astype("<u4").tobytes().decode("utf-32-le").encode("utf-8")

    def stable_length(self, text: bytes) -> int:
        return whole_chars(text)
