"""Reading data back: its text, and whether it is the text that it was made of."""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import MMapIndexedDataset, _dtype_header_code, best_fitting_int_dtype

from fairseq_expire.files import file_crc32, file_sha256
from fairseq_expire.tokenizers.base import Tokenizer
from fairseq_expire.tokenizers.dictionary import SymbolTable, load_dictionary
from fairseq_expire.tokenizers.manifest import Manifest, SplitCounts, read_manifest
from fairseq_expire.tokenizers.registry import make_level

# Ids that are turned into text at once.
READ_TOKENS = 1 << 18
# Items whose sizes are looked at at once.
READ_ITEMS = 1 << 16

INDEX_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC


class TextHash:
    """The length and the SHA-256 of a text that comes in parts, as `Encoded.text` or as a decoder gives them."""

    def __init__(self, level: Tokenizer):
        self._join = level.joiner()
        self._hash = hashlib.sha256()
        self.num_bytes = 0
        self.num_chars = 0

    def add(self, text: bytes) -> None:
        text = self._join(text)
        self._hash.update(text)
        self.num_bytes += len(text)
        # In UTF-8 all bytes of a character but the first have these two bits.
        ascii_text = text.isascii()
        self.num_chars += (
            len(text) if ascii_text else np.count_nonzero(np.frombuffer(text, np.uint8) & 0xC0 != 0x80).item()
        )

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def texts(
    prefix: Path, sizes: BinaryIO, level: Tokenizer, dictionary: SymbolTable, *, dtype: type, tokens: int
) -> Iterator[bytes]:
    """The text of the first `tokens` ids of a split, in parts for `TextHash` or a joiner.

    Args:
        prefix: the split's path without .bin.
        sizes: a file that stands where the sizes of its items begin, int32 each, and ends after them; tokens that come
            after the last of these items belong to one that has not ended.

    Raises:
        ValueError: there are fewer tokens, or some that the dictionary does not have.
    """
    decode = level.decoder(dictionary)
    done = 0
    with open(f"{prefix}.bin", "rb") as file:
        while done < tokens:
            ends = np.cumsum(np.frombuffer(sizes.read(READ_ITEMS * 4), dtype=np.int32), dtype=np.int64)
            length = int(ends[-1]) if len(ends) else tokens - done
            for start in range(0, length, READ_TOKENS):
                ids = np.fromfile(file, dtype=dtype, count=min(READ_TOKENS, length - start))
                if len(ids) < min(READ_TOKENS, length - start):
                    raise ValueError(f"{prefix}.bin: shorter than its index says; make the data again")
                if ids.max() >= len(dictionary):
                    raise ValueError(f"{prefix}.bin: holds ids that are not in dict.txt; make the data again")
                first, last = np.searchsorted(ends, [start, start + len(ids)], side="right")
                yield decode(ids, ends[first:last] - start)
            done += length


def restore(folder: str | Path, *, split: str) -> Iterator[bytes]:
    r"""The text that the data was made of, a part at a time.

    Bytes, characters and subwords come back exactly, but for what options left out or normalised; words with one space
    between them and "\n" after every line.

    Raises:
        ValueError: the folder has no manifest, or no such split; symbols were not in the dictionary and are lost;
            dict.txt is not the one the data was written with.
    """
    data = _Data(folder)
    counts = data.counts(split)
    if counts.unknown:
        raise ValueError(
            f"{folder}: {counts.unknown} of the {counts.tokens} symbols of {split} are <unk>, because train has none of "
            "their kind (or too few of them for --threshold), or because they are the word <pad>; their text is not kept"
        )
    return map(data.level.joiner(), data.texts(split))


def verify(folder: str | Path, *, on_progress: Callable[[str, int], None]) -> Iterator[str]:
    """Read the data back, split by split, and compare the text with the hash of what it was made of.

    Yields:
        A line on each split that is as it should be, and on all of them where the corpus has a known hash.

    Raises:
        ValueError: something differs; names the file.
    """
    data = _Data(folder)
    whole = TextHash(data.level)
    for split, counts in data.manifest.splits.items():
        text_hash = TextHash(data.level)
        for text in data.texts(split):
            text_hash.add(text)
            whole.add(text)
            on_progress(split, len(text))
        if text_hash.hexdigest() != counts.text_sha256:
            raise ValueError(
                f"{Path(folder, split)}.bin: the text in it has the SHA-256 {text_hash.hexdigest()}, and the text it was made "
                f"of had {counts.text_sha256}; make the data again"
            )
        data.check_files(split)
        yield f"{split}: {counts.tokens} tokens, {counts.text_bytes} bytes of text, SHA-256 {counts.text_sha256}: as made"
    expected = data.manifest.source.get("sha256")
    if expected is not None:
        if whole.hexdigest() != expected:
            raise ValueError(f"{folder}: all splits together have the SHA-256 {whole.hexdigest()}, expected {expected}")
        yield f"together: SHA-256 {expected}: the whole of {data.manifest.source['corpus']}"


class _Data:
    """Data with its manifest, dictionary and level. Raises ValueError if one of them is missing or of other data."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder}: no manifest.json there; give a folder that a script of data_prep wrote")
        self.manifest: Manifest = manifest
        path = self.folder / "dict.txt"
        if file_sha256(path) != manifest.dictionary_sha256:
            raise ValueError(f"{path}: not the file the data was written with; restore it, or make the data again")
        self.level = make_level(manifest.level, manifest.options)
        self.level.load(self.folder)
        self.dictionary = load_dictionary(path, self.level)

    def counts(self, split: str) -> SplitCounts:
        counts = self.manifest.splits.get(split)
        if counts is None:
            raise ValueError(f"{self.folder}: no split {split}; it has {', '.join(self.manifest.splits)}")
        return counts

    def texts(self, split: str) -> Iterator[bytes]:
        counts = self.counts(split)
        prefix = self.folder / split
        dtype = best_fitting_int_dtype(len(self.dictionary))
        header = struct.pack("<QBQ", 1, _dtype_header_code(dtype), counts.items)
        with open(f"{prefix}.idx", "rb") as index:
            if index.read(len(INDEX_MAGIC) + len(header)) != INDEX_MAGIC + header:
                raise ValueError(f"{prefix}.idx: not the index of this data; make it again")
            sizes = BoundedReader(index, 4 * counts.items)
            yield from texts(prefix, sizes, self.level, self.dictionary, dtype=dtype, tokens=counts.tokens)
        if os.path.getsize(f"{prefix}.bin") != counts.tokens * np.dtype(dtype).itemsize:
            raise ValueError(f"{prefix}.bin: longer than its index says; make the data again")

    def check_files(self, split: str) -> None:
        """What the text does not show: where items end, and symbols that stand for no text."""
        counts = self.counts(split)
        for suffix, expected in ((".idx", counts.idx_crc32), (".bin", counts.bin_crc32)):
            path = self.folder / (split + suffix)
            crc32 = file_crc32(path)
            if crc32 != expected:
                raise ValueError(
                    f"{path}: CRC-32 {crc32}, and it had {expected} when it was written; make the data again"
                )


class BoundedReader:
    """The next `length` bytes of a file."""

    def __init__(self, file: BinaryIO, length: int):
        self.file, self.left = file, length

    def read(self, length: int) -> bytes:
        content = self.file.read(min(length, self.left))
        self.left -= len(content)
        return content
