"""Verification: reading data back as text, and comparing that with the text it was made of."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import best_fitting_int_dtype

from fairseq_expire.corpora.split_files import check_crc32, read_split
from fairseq_expire.tokenizers.bound import make_tokenizer
from fairseq_expire.tokenizers.manifest import Manifest, SplitCounts, read_manifest
from fairseq_expire.tokenizers.tokenizer import Tokenizer, load_dictionary


class TextHash:
    """The length and the SHA-256 of a text that comes in parts, as an encoder or a decoder makes them.

    Args:
        tokenizer: joins the parts.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._join = tokenizer.make_joiner()
        self._hash = hashlib.sha256()
        self.num_bytes = 0
        self.num_chars = 0

    def add(self, text: bytes) -> None:
        """Appends a part."""
        text = self._join(text)
        self._hash.update(text)
        self.num_bytes += len(text)
        if text.isascii():
            self.num_chars += len(text)
        else:
            # In UTF-8, the bytes of a character after the first begin with the bits 10.
            self.num_chars += np.count_nonzero(np.frombuffer(text, np.uint8) & 0xC0 != 0x80).item()

    def hexdigest(self) -> str:
        """The SHA-256 of the text so far, in hexadecimal."""
        return self._hash.hexdigest()


def restore(folder: str | Path, *, split: str) -> Iterator[bytes]:
    r"""Yields the text that the data was made of, a part at a time.

    Bytes, characters and subwords come back exactly, except what options left out or normalised. Words come back with
    one space between them and "\n" after every line.

    Args:
        folder: of the data.
        split: name of the split.

    Raises:
        ValueError: the folder has no manifest, or no such split; the dictionary lacked symbols, whose text is lost;
            dict.txt is not the one the data was written with.
    """
    data = _Data(folder)
    counts = data.counts(split)
    if counts.unknown:
        raise ValueError(
            f"{folder}: {counts.unknown} of the {counts.tokens} symbols of {split} are <unk>, because train has none "
            "of their kind (or too few of them for --threshold), or because they are the word <pad>; their text is not "
            "kept"
        )
    return map(data.tokenizer.make_joiner(), data.texts(split))


def verify(folder: str | Path, *, on_progress: Callable[[str, int], None]) -> Iterator[str]:
    """Decodes the data, split by split, and compares the text with the hash of the text it was made of.

    Args:
        folder: of the data.
        on_progress: called with the name of a split and the number of bytes just decoded.

    Yields:
        A line for each split that is correct, and one for all of them together if the corpus has a known hash.

    Raises:
        ValueError: something differs; names the file.
    """
    data = _Data(folder)
    whole = TextHash(data.tokenizer)
    for split, counts in data.manifest.splits.items():
        text_hash = TextHash(data.tokenizer)
        for text in data.texts(split):
            text_hash.add(text)
            whole.add(text)
            on_progress(split, len(text))
        if text_hash.hexdigest() != counts.text_sha256:
            raise ValueError(
                f"{Path(folder, split)}.bin: the text in it has the SHA-256 {text_hash.hexdigest()}, and the text it "
                f"was made of had {counts.text_sha256}; make the data again"
            )
        data.check_files(split)
        size = f"{counts.tokens} tokens, {counts.text_bytes} bytes of text"
        yield f"{split}: {size}, SHA-256 {counts.text_sha256}: as made"
    expected = data.manifest.source.get("sha256")
    if expected is not None:
        if whole.hexdigest() != expected:
            raise ValueError(f"{folder}: all splits together have the SHA-256 {whole.hexdigest()}, expected {expected}")
        yield f"together: SHA-256 {expected}: the whole of {data.manifest.source['corpus']}"


class _Data:
    """Data with its manifest, tokenizer and dictionary.

    Raises ValueError if one of them is missing or of other data.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder}: no manifest.json there; give a folder that a script of data_prep wrote")
        self.manifest: Manifest = manifest
        path = self.folder / "dict.txt"
        manifest.check_dictionary_file(path)
        self.tokenizer = make_tokenizer(manifest.level, manifest.options)
        self.tokenizer.load(self.folder)
        self.dictionary = load_dictionary(path, self.tokenizer)

    def counts(self, split: str) -> SplitCounts:
        counts = self.manifest.splits.get(split)
        if counts is None:
            raise ValueError(f"{self.folder}: no split {split}; it has {', '.join(self.manifest.splits)}")
        return counts

    def texts(self, split: str) -> Iterator[bytes]:
        """Yields the text of a split in parts, for a joiner. Raises ValueError if the files do not fit together."""
        counts, symbols = self.counts(split), len(self.dictionary)
        dtype = best_fitting_int_dtype(symbols)
        decode = self.tokenizer.make_decoder(self.dictionary)
        sizes = {"tokens": counts.tokens, "items": counts.items, "symbols": symbols}
        for ids, ends in read_split(self.folder / split, dtype, **sizes):
            yield decode(ids, ends)

    def check_files(self, split: str) -> None:
        """Compares the checksums of the files.

        They show what the text does not: where items end, and symbols that have no text.
        """
        counts = self.counts(split)
        check_crc32(f"{self.folder / split}.idx", counts.idx_crc32)
        check_crc32(f"{self.folder / split}.bin", counts.bin_crc32)
