"""Text to symbol ids and back, at once or as it comes, as the data of a folder was made. Needs no fairseq."""

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np

from fairseq_expire.files import file_sha256
from fairseq_expire.tokenizers.base import Tokenizer
from fairseq_expire.tokenizers.dictionary import SymbolTable, load_dictionary
from fairseq_expire.tokenizers.manifest import read_manifest
from fairseq_expire.tokenizers.registry import LEVELS, make_level
from fairseq_expire.tokenizers.units import Unit
from fairseq_expire.tokenizers.words import Words

Text = Union[str, bytes]
# What may become of bytes that are not UTF-8 where they are decoded: U+FFFD, or a lone surrogate that can become the byte again.
DECODING_ERRORS = ("replace", "surrogateescape")


def as_bytes(text: Text) -> bytes:
    """A text in UTF-8. Bytes stay as they are, also those that are lone surrogates in a str, as Python's `surrogateescape` puts
    them there (in file names, arguments and standard input).

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
            f"the text given: U+{ord(text[error.start]):04X} at character {error.start} is half of a surrogate pair, which is "
            "neither a character nor a byte; take it out, or give the text as bytes"
        ) from None


class BoundTokenizer:
    """What a level makes of text that is at hand, with the dictionary of a model.

    Args:
        dictionary: fairseq's, or a :class:`PlainDictionary`.
        level: one whose symbols the dictionary has.
    """

    def __init__(self, dictionary: SymbolTable, level: Tokenizer):
        self.dictionary = dictionary
        self.level = level
        # The width matters to some levels, which look up several ids at once.
        dtype = np.uint16 if len(dictionary) <= np.iinfo(np.uint16).max else np.int32
        self._encode: Callable = level.encoder(dictionary, dtype=dtype, append_eos=False, item_per_file=False)
        self._decode = level.decoder(dictionary)

    @classmethod
    def of(cls, folder: str | Path) -> "BoundTokenizer":
        """The codec of a data-bin or of an exported model; words, if fairseq-preprocess made the data.

        Raises:
            FileNotFoundError: there is no dict.txt.
            ValueError: a file is damaged, or is not the one the data was made with.
        """
        folder = Path(folder)
        path = folder / "dict.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"no dict.txt in {folder}: expected the folder of a data-bin or of an exported model"
            )
        manifest = read_manifest(folder)
        level: Tokenizer = Words()
        if manifest is not None:
            if file_sha256(path) != manifest.dictionary_sha256:
                raise ValueError(
                    f"{path}: not the file that manifest.json names; restore it, or prepare or export again"
                )
            level = make_level(manifest.level, manifest.options)
            level.load(folder)
        return cls(load_dictionary(path, level), level)

    @property
    def level_name(self) -> str:
        """ "bytes", "chars", "words" or "subword"."""
        return next(name for name, kind in LEVELS.items() if isinstance(self.level, kind))

    @property
    def symbols(self) -> list[str]:
        """The names of all symbols, in the order of their ids."""
        return self.dictionary.symbols

    @property
    def eos(self) -> int:
        return self.dictionary.eos()

    @property
    def pad(self) -> int:
        return self.dictionary.pad()

    def encode(self, text: Text) -> list[int]:
        r"""The ids of a text.

        No `</s>` is added but where the level has one for each "\n": in words, of which the last line ends if and only if
        it ends in "\n", and in bytes made with that option.

        Raises:
            ValueError: bytes that are not UTF-8, at any level but bytes; see also :func:`as_bytes`.
        """
        content = as_bytes(text)
        return self._encode(_TextUnit.of(content)).ids.tolist() if content else []

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text of ids, without `</s>` that stand for none; symbols without a text of their own become one that
        stands for them all ("?" in bytes, U+FFFD in characters; in subwords U+FFFD for `<unk>`, and nothing for others).

        Raises:
            ValueError: an id is not in the dictionary.
        """
        return self.level.joiner()(self._parts(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """As :meth:`decode_bytes`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream_encoder(self) -> "StreamEncoder":
        """For text that comes in parts."""
        return StreamEncoder(self)

    def stream_decoder(self, errors: str = "replace") -> "StreamDecoder":
        """For ids that come one by one; ``errors`` is one of ``DECODING_ERRORS``."""
        return StreamDecoder(self, errors)

    def _parts(self, ids: Iterable[int]) -> bytes:
        """The text of ids before it is joined to what comes before and after."""
        numbers = np.fromiter(ids, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self.dictionary):
            raise ValueError(
                f"ids are numbers from 0 to {len(self.dictionary) - 1}, got {numbers.min()} to {numbers.max()}"
            )
        return self._decode(numbers, np.flatnonzero(numbers == self.eos) + 1)


class StreamEncoder:
    """Text in parts to ids, the same as for the whole text at once. What may still change is held back: a character, word
    or line end that has only begun; of a text without spaces, a subword model may have to hold back all.

    Args:
        codec: what makes ids of text.
        held: text that was fed before and not encoded yet.
    """

    def __init__(self, codec: BoundTokenizer, held: bytes = b""):
        self._codec = codec
        self.held = held

    def feed(self, text: Text) -> list[int]:
        """The ids that have become certain. Raises ValueError as :meth:`BoundTokenizer.encode`; nothing is fed then."""
        text = self.held + as_bytes(text)
        settled = self._codec.level.settled(text)
        ids = self._codec.encode(text[:settled])
        self.held = text[settled:]
        return ids

    def flush(self) -> list[int]:
        """The ids of what is held, if the text ends here."""
        ids = self._codec.encode(self.held)
        self.held = b""
        return ids


class StreamDecoder:
    """Ids one by one to text: what is given, put together, is the text of them all."""

    def __init__(self, codec: BoundTokenizer, errors: str):
        self._codec = codec
        self._join = codec.level.joiner()
        self._chars = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, index: int) -> str:
        """The text that has become complete with this id; nothing while a character lacks bytes."""
        return self._chars.decode(self._join(self._codec._parts([index])))

    def flush(self) -> str:
        """What stands for an incomplete character at the end, or nothing if all are complete."""
        return self._chars.decode(b"", final=True)


@dataclass(frozen=True)
class _TextUnit(Unit):
    """A unit whose text is not in a file, and which the text may go on after."""

    content: bytes

    @classmethod
    def of(cls, content: bytes) -> "_TextUnit":
        return cls(Path("the text given"), 0, len(content), ends_piece=False, ends_file=False, content=content)

    def read(self) -> bytes:
        return self.content
