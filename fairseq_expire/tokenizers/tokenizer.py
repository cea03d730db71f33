"""The tokenizer interface, which bytes, characters, words and subwords implement, and helpers that they share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_expire.tokenizers.chunks import Boundary, Chunk
from fairseq_expire.tokenizers.dictionary import PlainDictionary, SymbolTable

LINE_ENDS = ("keep", "normalise")


@dataclass(frozen=True)
class EncodedChunk:
    """The symbols of a chunk of text.

    An item is what fairseq's indexed datasets store under one index: a sequence of symbol ids.

    Args:
        ids: symbol ids [length].
        item_ends: for each item that ends in the chunk, the number of ids before its end, int64 [items]. Ids after the
            last of them belong to an item that continues in the next chunk.
        num_unknown: how many ids stand for symbols that the dictionary lacks.
        text: the text that the ids decode to, made without decoding them. Verification compares the two.
    """

    ids: np.ndarray
    item_ends: np.ndarray
    num_unknown: int
    text: bytes


# Decodes ids [length], given also the ends of items among them, int64 [items], as in `EncodedChunk`.
Decoder = Callable[[np.ndarray, np.ndarray], bytes]
Encoder = Callable[[Chunk], EncodedChunk]


class Tokenizer(ABC):
    """A way to make symbols of text.

    A subclass is a dataclass, whose fields are the options that the manifest records. To add one, list it in
    ``TOKENIZERS`` of :mod:`fairseq_expire.tokenizers.bound`.

    Attributes:
        name: its name, as ``--level`` and the manifest have it.
        padding_factor: fairseq fills a dictionary up to a multiple of this.
        uses_processes: True if chunks are tokenized in processes. Threads are cheaper where Python code takes little of
            the time.
        boundary: finds where a text may be cut into chunks.
    """

    name: str
    padding_factor = 1
    uses_processes = False
    boundary: Boundary

    @property
    def options(self) -> dict[str, Any]:
        """Its options, for the manifest."""
        return asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses

    def learn(self, chunks: Sequence[Chunk], folder: Path) -> None:  # noqa: B027
        """Learns from the chunks of the train split what it needs beside a dictionary, and writes it to ``folder``."""

    def adopt(self, source: Path, folder: Path) -> None:  # noqa: B027
        """Copies what was learned for the data in ``source`` to ``folder``. Raises ValueError if it is not there."""

    def load(self, folder: Path) -> None:  # noqa: B027
        """Reads from ``folder`` what was learned. Must be called before any method below."""

    def sample(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Selects the chunks whose symbols are counted for the dictionary."""
        return chunks

    @abstractmethod
    def count(self, chunk: Chunk) -> Mapping[str, int]:
        """Counts how often each symbol occurs."""

    def fixed_symbols(self) -> Iterable[str]:
        """Symbols that the dictionary has even if they do not occur."""
        return ()

    @abstractmethod
    def check(self, dictionary: SymbolTable) -> None:
        """Raises ValueError if the dictionary was made by another tokenizer.

        The dictionary may have symbols that this tokenizer never makes, as fairseq's tools add some. It may also lack
        symbols: text that would become one of them becomes ``<unk>``.
        """

    @abstractmethod
    def make_encoder(self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool) -> Encoder:
        """Makes the function that encodes a chunk.

        Args:
            dictionary: gives the ids.
            dtype: of the ids.
            append_eos: end every file with ``</s>``.
            item_per_file: make an item of a file; otherwise of a chunk. With words an item is always a line.
        """

    @abstractmethod
    def make_decoder(self, dictionary: SymbolTable) -> Decoder:
        """Makes the inverse of the encoder, without the ``</s>`` that were added.

        One text stands for all that is unknown.
        """

    @abstractmethod
    def stable_length(self, text: bytes) -> int:
        """The length of a prefix of a UTF-8 text whose symbols do not depend on what follows the text.

        It is as long as the tokenizer can tell without encoding.
        """

    def make_joiner(self) -> Callable[[bytes], bytes]:
        """Makes the function to apply to decoded texts, in order, before they are concatenated."""
        return bytes


def load_dictionary(path: Path, tokenizer: Tokenizer, *, given: Path | None = None) -> PlainDictionary:
    """Reads a dict.txt and checks that it is the tokenizer's.

    Args:
        path: the file to read.
        tokenizer: whose symbols it must have.
        given: the file to name in errors; None for ``path``.

    Raises:
        ValueError: it is damaged, or the dictionary of another tokenizer.
    """
    try:
        dictionary = PlainDictionary.load(path)
        tokenizer.check(dictionary)
    except ValueError as error:
        name = type(tokenizer).__name__.lower()
        raise ValueError(
            f"{given or path}: not a dictionary of {name} ({error}); give the dict.txt of data of this level"
        ) from None
    return dictionary


def own_symbols(dictionary: SymbolTable) -> dict[str, int]:
    """The symbols that are not fairseq's special ones, with their ids."""
    return {symbol: index for symbol, index in dictionary.indices.items() if index >= dictionary.nspecial}


def is_filler(symbol: str) -> bool:
    """Returns True for a symbol that the dictionary of any tokenizer may have.

    Such a symbol fills a dictionary up (fairseq's ``--padding-factor``), has the form of a special symbol, or is empty.
    """
    return re.fullmatch(r"madeupword\d{4,}|<.+>|\[.+\]|", symbol) is not None


def item_ends(length: int, chunk: Chunk, item_per_file: bool) -> np.ndarray:
    """The ends of items in a chunk of ``length`` ids, where an item is a chunk or a file."""
    return np.array([length] if chunk.ends_slice or not item_per_file else [], dtype=np.int64)


def whole_chars(text: bytes) -> int:
    r"""The length of a UTF-8 text without an incomplete character, or a "\r" that a "\n" may follow, at its end."""
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
    r"""Replaces every "\r\n" and "\r" by "\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}, expected one of {', '.join(choices)}")
