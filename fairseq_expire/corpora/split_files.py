"""The .bin and .idx of a split in fairseq's memory-mapped format: written and read a part at a time."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import MMapIndexedDataset, _dtype_header_code

from fairseq_expire.files import file_crc32, naming_file_in_errors

# Items whose offsets are computed at once when an index is written.
INDEX_ITEMS = 1 << 18
# Items whose sizes are read at once.
READ_ITEMS = 1 << 16
# Ids to read at once.
READ_TOKENS = 1 << 18

INDEX_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC


class SplitWriter:
    """Writes symbol ids as a .bin and an .idx, byte for byte as fairseq's own builder writes the items.

    Unlike that, it does not keep the sizes of all items in memory. Use :func:`open_split`.

    Args:
        prefix: the path of the files without .bin.
        dtype: of the ids.
    """

    def __init__(self, prefix: Path, dtype: type):
        self.prefix, self.dtype = prefix, dtype
        self.tokens = self.items = self.bin_crc32 = 0
        # Tokens of the item that continues in what is added next.
        self.open_tokens = 0
        self._bin_path, self._idx_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
        with naming_file_in_errors(self._idx_path), MMapIndexedDataset.Index.writer(str(self._idx_path), dtype):
            # Writes the header. It could also write the rest, but takes that as lists of Python numbers.
            pass
        with naming_file_in_errors(self._bin_path):
            self._bin = open(self._bin_path, "wb")  # noqa: SIM115
        self._idx = open(self._idx_path, "r+b")  # noqa: SIM115
        # The number of items, to be overwritten at the end.
        self._count_offset = self._idx.seek(0, os.SEEK_END)
        self._idx.write(struct.pack("<Q", 0))

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Appends symbols.

        Args:
            ids: symbol ids [length].
            ends: for each item that ends among them, the number of ids before its end, int64 [items].

        Raises:
            ValueError: an item is longer than the format allows.
            OSError: a file cannot be written; names it.
        """
        if len(ends):
            sizes = np.diff(ends, prepend=0)
            sizes[0] += self.open_tokens
            # A file of which everything is left out makes no item.
            sizes = sizes[sizes > 0]
            if sizes.max(initial=0) > np.iinfo(np.int32).max:
                raise ValueError(
                    f"{self.prefix}: an item of {sizes.max()} tokens, and fairseq's format has room for 2^31 - 1; "
                    "cut the text into more files or lines"
                )
            with naming_file_in_errors(self._idx_path):
                self._idx.write(sizes.astype(np.int32).tobytes())
            self.items += len(sizes)
            self.open_tokens = len(ids) - int(ends[-1])
        else:
            self.open_tokens += len(ids)
        content = np.ascontiguousarray(ids, dtype=self.dtype).data
        with naming_file_in_errors(self._bin_path):
            self._bin.write(content)
        self.bin_crc32 = zlib.crc32(content, self.bin_crc32)
        self.tokens += len(ids)

    def finish(self) -> None:
        """Completes the index with the offsets of the items, and brings both files onto the disk."""
        if self.open_tokens:
            raise RuntimeError(f"{self.prefix}: the last item has not ended")
        with naming_file_in_errors(self._idx_path):
            self._idx.seek(self._count_offset)
            self._idx.write(struct.pack("<Q", self.items))
            item_bytes, start = np.dtype(self.dtype).itemsize, 0
            for sizes in self._read_sizes():
                ends = start + np.cumsum(sizes, dtype=np.int64) * item_bytes
                self._idx.seek(0, os.SEEK_END)
                self._idx.write((ends - sizes * np.int64(item_bytes)).tobytes())
                start = int(ends[-1])
            _sync(self._idx)
        with naming_file_in_errors(self._bin_path):
            _sync(self._bin)

    def _read_sizes(self) -> Iterator[np.ndarray]:
        """Yields the sizes of items, int32, some at a time."""
        for done in range(0, self.items, INDEX_ITEMS):
            self._idx.seek(self._count_offset + 8 + 4 * done)
            yield np.frombuffer(self._idx.read(4 * min(INDEX_ITEMS, self.items - done)), dtype=np.int32)

    def close(self) -> None:
        """Closes the files, complete or not."""
        for file in (self._bin, self._idx):
            with suppress(OSError):
                file.close()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def open_split(prefix: Path, dtype: type) -> Iterator[SplitWriter]:
    """Opens the files of a split for writing. They are complete after the ``with``, unless an error ends it."""
    writer = SplitWriter(prefix, dtype)
    try:
        yield writer
        writer.finish()
    finally:
        writer.close()


def read_split(
    prefix: Path, dtype: type, *, tokens: int, items: int, symbols: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the files of a split.

    Args:
        prefix: the path of the files without .bin.
        dtype: of the ids.
        tokens: number of ids in them.
        items: number of items in them.
        symbols: size of the dictionary.

    Yields:
        Ids [length], and for each item that ends among them the number of ids before its end, int64 [items].

    Raises:
        ValueError: the files do not fit together, or not to these numbers; names the file.
    """
    with open(f"{prefix}.bin", "rb") as file:
        for ends in read_item_ends(prefix, dtype, items=items):
            length = int(ends[-1])
            for start in range(0, length, READ_TOKENS):
                ids = np.fromfile(file, dtype=dtype, count=min(READ_TOKENS, length - start))
                if len(ids) < min(READ_TOKENS, length - start):
                    raise ValueError(f"{prefix}.bin: shorter than its index says; make the data again")
                if ids.max() >= symbols:
                    raise ValueError(f"{prefix}.bin: holds ids that are not in dict.txt; make the data again")
                first, last = np.searchsorted(ends, [start, start + len(ids)], side="right")
                yield ids, ends[first:last] - start
    if os.path.getsize(f"{prefix}.bin") != tokens * np.dtype(dtype).itemsize:
        raise ValueError(f"{prefix}.bin: longer than its index says; make the data again")


def read_item_ends(prefix: Path, dtype: type, *, items: int) -> Iterator[np.ndarray]:
    """Yields the ends of some items at a time, int64 [items], in tokens from the start of the first of them.

    Raises ValueError if the index is of other ids or another number of items, or is cut short.
    """
    header = INDEX_MAGIC + struct.pack("<QBQ", 1, _dtype_header_code(dtype), items)
    with open(f"{prefix}.idx", "rb") as index:
        if index.read(len(header)) != header:
            raise ValueError(f"{prefix}.idx: not the index of this data; make it again")
        for done in range(0, items, READ_ITEMS):
            sizes = np.fromfile(index, dtype=np.int32, count=min(READ_ITEMS, items - done))
            if len(sizes) < min(READ_ITEMS, items - done):
                raise ValueError(f"{prefix}.idx: cut short; make the data again")
            yield np.cumsum(sizes, dtype=np.int64)


def check_crc32(path: str | Path, expected: int) -> None:
    """Raises ValueError if a file does not have the CRC-32 it had when it was written."""
    crc32 = file_crc32(path)
    if crc32 != expected:
        raise ValueError(f"{path}: CRC-32 {crc32}, and it had {expected} when it was written; make the data again")
