"""Tokenizers by name, and a tokenizer with a dictionary, which turns text in memory into symbol ids and back."""

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_expire.tokenizers.bytes_and_chars import Bytes, Chars
from fairseq_expire.tokenizers.chunks import Chunk
from fairseq_expire.tokenizers.dictionary import SymbolTable
from fairseq_expire.tokenizers.manifest import read_manifest
from fairseq_expire.tokenizers.subwords import Subwords
from fairseq_expire.tokenizers.tokenizer import Tokenizer, load_dictionary
from fairseq_expire.tokenizers.words import Words

TOKENIZERS: Mapping[str, type[Tokenizer]] = {kind.name: kind for kind in (Bytes, Chars, Words, Subwords)}

Text = str | bytes
# How bytes that are not UTF-8 are decoded: as U+FFFD, or as a lone surrogate that can become the byte again.
DECODING_ERRORS = ("replace", "surrogateescape")


def make_tokenizer(name: str, options: Mapping[str, Any]) -> Tokenizer:
    """Makes a tokenizer.

    Args:
        name: one of ``TOKENIZERS``, as ``--level`` and the manifest have it.
        options: its fields.

    Raises:
        ValueError: there is no such tokenizer, or it has no such option.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"level is {name!r}, expected one of {', '.join(TOKENIZERS)}")
    try:
        return TOKENIZERS[name](**options)
    except TypeError:
        raise ValueError(f"level {name} has no such options: {dict(options)}") from None


def as_bytes(text: Text) -> bytes:
    """A text in UTF-8.

    Bytes stay as they are. So do bytes that are lone surrogates in a str, as Python's ``surrogateescape`` puts them
    there (in file names, arguments and standard input).

    Raises:
        ValueError: neither str nor bytes, or a str with a surrogate that stands for no byte.
    """
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    if not isinstance(text, str):
        raise ValueError(f"a text is str or bytes, got {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text given: U+{ord(text[error.start]):04X} at character {error.start} is half of a surrogate pair, "
            "which is neither a character nor a byte; take it out, or give the text as bytes"
        ) from None


class BoundTokenizer:
    """A tokenizer with the dictionary of a model, for text in memory.

    Args:
        dictionary: fairseq's, or a :class:`~fairseq_expire.tokenizers.dictionary.PlainDictionary`.
        tokenizer: the one that the dictionary was made by.
    """

    def __init__(self, dictionary: SymbolTable, tokenizer: Tokenizer):
        self.dictionary = dictionary
        self.tokenizer = tokenizer
        self._encode = tokenizer.make_encoder(dictionary, dtype=np.int32, append_eos=False, item_per_file=False)
        self._decode = tokenizer.make_decoder(dictionary)

    @classmethod
    def load(cls, folder: str | Path) -> "BoundTokenizer":
        """Reads the tokenizer of a data-bin or of an exported model. Data of fairseq-preprocess is made of words.

        Raises:
            FileNotFoundError: there is no dict.txt.
            ValueError: a file is damaged, or is not the one the data was made with.
        """
        folder = Path(folder)
        # First, since a folder of labelled data has no dict.txt, and its manifest says so.
        manifest = read_manifest(folder)
        path = folder / "dict.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"no dict.txt in {folder}: expected the folder of a data-bin or of an exported model"
            )
        tokenizer: Tokenizer = Words()
        if manifest is not None:
            manifest.check_dictionary_file(path)
            tokenizer = make_tokenizer(manifest.level, manifest.options)
            tokenizer.load(folder)
        return cls(load_dictionary(path, tokenizer), tokenizer)

    @property
    def level(self) -> str:
        """The tokenizer's name: "bytes", "chars", "words" or "subword"."""
        return self.tokenizer.name

    @property
    def symbols(self) -> list[str]:
        """The names of all symbols, in the order of their ids."""
        return self.dictionary.symbols

    @property
    def eos(self) -> int:
        """The id of ``</s>``."""
        return self.dictionary.eos()

    @property
    def pad(self) -> int:
        """The id of ``<pad>``."""
        return self.dictionary.pad()

    def encode(self, text: Text) -> list[int]:
        r"""The ids of a text.

        No ``</s>`` is added, except where one stands for each "\n": in words, and in bytes made with that option. The
        last line ends in ``</s>`` if and only if it ends in "\n".

        Raises:
            ValueError: bytes that are not UTF-8, unless symbols are bytes; see also :func:`as_bytes`.
        """
        content = as_bytes(text)
        return self._encode(_TextChunk.of(content)).ids.tolist() if content else []

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text of ids.

        A ``</s>`` that stands for no line end is left out. One text stands for all symbols without a text of their own:
        "?" in bytes, U+FFFD in characters. In subwords U+FFFD stands for ``<unk>``, and the others are left out.

        Raises:
            ValueError: an id is not in the dictionary.
        """
        return self.tokenizer.make_joiner()(self._decode_part(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as :meth:`decode_bytes`. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream_encoder(self) -> "StreamEncoder":
        """Makes an encoder for text that comes in parts."""
        return StreamEncoder(self)

    def stream_decoder(self, errors: str = "replace") -> "StreamDecoder":
        """Makes a decoder for ids that come one by one; ``errors`` is one of ``DECODING_ERRORS``."""
        return StreamDecoder(self, errors)

    def _decode_part(self, ids: Iterable[int]) -> bytes:
        """The text of ids before it is joined to what comes before and after."""
        numbers = np.fromiter(ids, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self.dictionary):
            raise ValueError(
                f"ids are numbers from 0 to {len(self.dictionary) - 1}, got {numbers.min()} to {numbers.max()}"
            )
        return self._decode(numbers, np.flatnonzero(numbers == self.eos) + 1)


class StreamEncoder:
    """Encodes text that comes in parts, to the ids of the whole text.

    A part whose ids may still change stays pending: an incomplete character, word or line end. All of a text
    without spaces may be pending with subwords.

    Args:
        tokenizer: encodes the text.
        pending: text that was fed before and is not encoded yet.
    """

    def __init__(self, tokenizer: BoundTokenizer, pending: bytes = b""):
        self._bound = tokenizer
        self.pending = pending

    def feed(self, text: Text) -> list[int]:
        """The ids that have become certain.

        Raises:
            ValueError: as :meth:`BoundTokenizer.encode`; nothing is fed then.
        """
        text = self.pending + as_bytes(text)
        stable = self._bound.tokenizer.stable_length(text)
        ids = self._bound.encode(text[:stable])
        self.pending = text[stable:]
        return ids

    def flush(self) -> list[int]:
        """The ids of the pending text, if the text ends here."""
        ids = self._bound.encode(self.pending)
        self.pending = b""
        return ids


class StreamDecoder:
    """Decodes ids one by one. The results concatenate to the text of all ids."""

    def __init__(self, tokenizer: BoundTokenizer, errors: str):
        self._bound = tokenizer
        self._join = tokenizer.tokenizer.make_joiner()
        self._chars = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, index: int) -> str:
        """The text that is complete with this id; empty while bytes of a character are missing."""
        return self._chars.decode(self._join(self._bound._decode_part([index])))

    def flush(self) -> str:
        """The replacement of an incomplete character at the end, or an empty text."""
        return self._chars.decode(b"", final=True)


@dataclass(frozen=True)
class _TextChunk(Chunk):
    """A chunk whose text is in memory, and which more text may follow."""

    content: bytes = field(kw_only=True)

    @classmethod
    def of(cls, content: bytes) -> "_TextChunk":
        return cls(Path("the text given"), 0, len(content), ends_file=False, ends_slice=False, content=content)

    def read(self) -> bytes:
        return self.content
