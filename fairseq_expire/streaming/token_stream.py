"""The tokens of a split as one sequence, read from fairseq's mmap format.

Size legend: N tokens in the split.
"""

import functools
import logging
import mmap
import os
import struct
from collections.abc import Sequence

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import MMapIndexedDataset, _code_to_dtype, data_file_path, index_file_path

from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS

logger = logging.getLogger(__name__)

# Every block is checked when it is read. So many tokens at the start are also checked when the split is opened, in
# chunks of this size.
CHECKED_TOKENS = 1 << 26
CHUNK = 1 << 20
# Its index in every dictionary of fairseq.
UNK = SPECIAL_SYMBOLS.index("<unk>")
# The fields of an index after its magic number: version, code of the tokens' type, number of items.
HEADER = struct.Struct("<QBQ")


class TokenStream:
    """The tokens of one split as a single sequence, read from disk on demand.

    The items of an mmap dataset lie one after the other in its ``.bin``, so borders of items need no handling.

    Args:
        prefixes: paths of the parts of the split in order, without ``.bin`` and ``.idx``.
        num_symbols: size of the dictionary.
        pad: index of the padding symbol. Where fairseq-preprocess found a word ``<pad>`` in the text it is read as
            ``unk``, since fairseq leaves padding out of every loss.
        unk: index of the unknown symbol.
        keep_padding: leave padding as it is, as labels need it: it stands where none counts.
        warned: True if the log has the warning about padding in this split already.
    Raises:
        FileNotFoundError: if a part is missing.
        ValueError: if a part is not in the mmap format or is cut short, or the split holds no token.
    """

    def __init__(
        self,
        prefixes: Sequence[str],
        *,
        num_symbols: int,
        pad: int,
        unk: int = UNK,
        keep_padding: bool = False,
        warned: bool = False,
    ):
        self.prefixes = list(prefixes)
        self.num_symbols = num_symbols
        self.pad, self.unk, self.keep_padding = pad, unk, keep_padding
        # One byte that this process shares with its forked workers, so that only one of them warns.
        self._warned = mmap.mmap(-1, 1)
        self._warned[0] = warned
        self._parts: list[np.ndarray] = [_open_part(prefix) for prefix in self.prefixes]
        self._ends = np.cumsum([len(part) for part in self._parts])
        if len(self) == 0:
            raise ValueError(f"{self.prefixes[0]}.bin holds no token: there is nothing to train on or to score")
        # Finds most errors before the work starts, in little time.
        for start in range(0, min(len(self), CHECKED_TOKENS), CHUNK):
            self.read(start, min(start + CHUNK, CHECKED_TOKENS, len(self)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self):
        # Workers open the files again: pickling a memmap would copy the corpus.
        options = {
            "num_symbols": self.num_symbols,
            "pad": self.pad,
            "unk": self.unk,
            "keep_padding": self.keep_padding,
            "warned": bool(self._warned[0]),
        }
        return functools.partial(TokenStream, **options), (self.prefixes,)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns tokens ``start`` to ``stop``, [stop - start] int64, without padding unless it is kept.

        Raises:
            ValueError: if a token is outside the dictionary.
        """
        number = int(np.searchsorted(self._ends, start, side="right"))
        chunks = []
        position = start
        while position < stop:
            begin = int(self._ends[number - 1]) if number else 0
            end = min(stop, int(self._ends[number]))
            chunks.append(self._parts[number][position - begin : end - begin].astype(np.int64))
            position, number = end, number + 1
        tokens = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int64)
        self._check(tokens, start)
        if self.keep_padding:
            return tokens
        padding = tokens == self.pad
        if padding.any():
            self._warn(start + int(np.argmax(padding)))
            tokens[padding] = self.unk
        return tokens

    def item_sizes(self) -> np.ndarray:
        """Returns the number of tokens of each item of the split, int64."""
        return np.concatenate([_item_sizes(prefix) for prefix in self.prefixes])

    def _check(self, tokens: np.ndarray, start: int) -> None:
        if tokens.size and (tokens.max() >= self.num_symbols or tokens.min() < 0):
            wrong = int(np.argmax((tokens >= self.num_symbols) | (tokens < 0)))
            raise ValueError(
                f"token {start + wrong} of {self.prefixes[0]}.bin is {tokens[wrong]}, but dict.txt has only "
                f"{self.num_symbols} symbols: the data was made with another dictionary; prepare it again"
            )

    def _warn(self, position: int) -> None:
        if self._warned[0]:
            return
        self._warned[0] = True
        logger.warning(
            "token %d of %s.bin is the padding symbol (a literal '<pad>' in the text), which fairseq leaves out of "
            "every loss: all such tokens are read as '<unk>'",
            position,
            self.prefixes[0],
        )


def find_parts(folder: str, split: str, combine: bool) -> list[str]:
    """Finds the files of a split.

    Args:
        folder: the data-bin.
        split: the name of the split, such as "train".
        combine: also find ``train1``, ``train2`` and so on, as fairseq names further parts.
    Returns:
        the path of each part without ``.bin`` and ``.idx``.
    Raises:
        FileNotFoundError: if there is no such split.
    """
    prefix = os.path.join(folder, split)
    if not MMapIndexedDataset.exists(prefix):
        names = set(os.listdir(folder))
        found = sorted(name[:-4] for name in names if name.endswith(".idx") and f"{name[:-4]}.bin" in names)
        raise FileNotFoundError(
            f"no split '{split}' in {folder}: expected {split}.bin and {split}.idx, found splits: "
            f"{', '.join(found) or 'none'}; prepare it with data_prep/text.py or fairseq-preprocess"
        )
    parts = [prefix]
    while combine and MMapIndexedDataset.exists(f"{prefix}{len(parts)}"):
        parts.append(f"{prefix}{len(parts)}")
    return parts


def _open_part(prefix: str) -> np.ndarray:
    """Maps the tokens of a part into memory and checks that index and data fit."""
    index_path, data_path = index_file_path(prefix), data_file_path(prefix)
    for path in (index_path, data_path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} is missing: prepare the data again")
    _check_header(index_path)
    try:
        index = MMapIndexedDataset.Index(index_path)
    except ValueError as error:
        raise ValueError(f"{index_path} is cut short ({error}): prepare the data again") from error
    tokens = int(index.sizes.sum(dtype=np.int64))
    expected, actual = tokens * np.dtype(index.dtype).itemsize, os.path.getsize(data_path)
    if expected != actual:
        raise ValueError(
            f"{data_path} has {actual} bytes where its index says {expected}: it is damaged or of another corpus; "
            "prepare it again"
        )
    if tokens == 0:
        return np.zeros(0, dtype=index.dtype)
    return np.memmap(data_path, dtype=index.dtype, mode="r", shape=(tokens,))


def _item_sizes(prefix: str) -> np.ndarray:
    index = MMapIndexedDataset.Index(index_file_path(prefix))
    # A copy, since the index unmaps its file when it is deleted.
    return index.sizes.astype(np.int64)


def _check_header(path: str) -> None:
    """Raises ValueError if the index cannot be opened; fairseq would leave the file open after its own error."""
    magic = MMapIndexedDataset.Index._HDR_MAGIC
    with open(path, "rb") as file:
        header = file.read(len(magic) + HEADER.size)
    if not header.startswith(magic):
        raise ValueError(
            f"{path} is not an index of fairseq's mmap format: prepare the data with data_prep/text.py, or with "
            "fairseq-preprocess and its default --dataset-impl"
        )
    if len(header) == len(magic) + HEADER.size:
        version, dtype, _ = HEADER.unpack(header[len(magic) :])
        if version == 1 and dtype in _code_to_dtype:
            return
    raise ValueError(f"{path} is cut short or damaged at its beginning: prepare the data again")
