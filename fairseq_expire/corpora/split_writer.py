"""Writing one split in fairseq's mmap format, so that it can be gone on with after being killed at any moment."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_expire.files import file_crc32, naming
from fairseq_expire.tokenizers.base import Encoded

# Ends the name of the file that holds the sizes of items while they are written.
SIZES = ".sizes"

# Items whose places are worked out at once when the index is written.
INDEX_ITEMS = 1 << 18


@dataclass
class Written:
    """How much is written: `units` of text, as `tokens` ids in `items` that have ended and one that has `open_tokens` so
    far; `unknown` of the ids are `<unk>` for want of a symbol. With the CRC-32 of the bytes of ids and of sizes: unlike that of
    a stronger hash, its value in the middle can be recorded and gone on from."""

    units: int = 0
    tokens: int = 0
    items: int = 0
    unknown: int = 0
    open_tokens: int = 0
    bin_crc32: int = 0
    sizes_crc32: int = 0


class SplitWriter:
    """Appends encoded units to NAME.bin and the sizes of items to NAME.sizes, of which `finish` makes NAME.idx.

    The files are the same, byte for byte, as fairseq's own builder makes of the items, which keeps all sizes in memory.

    Args:
        folder, name: where to write.
        dtype: of ids.
        written: what an earlier run wrote and recorded; whatever it wrote after that is cut off. If the files do not hold
            it any more (a disk that lost power), nothing is `written`.
    """

    def __init__(self, folder: Path, name: str, *, dtype: type, written: Written):
        self.prefix = Path(folder, name)
        self.dtype = dtype
        self._bin, self._sizes = self._open(".bin"), self._open(SIZES)
        token_bytes = np.dtype(dtype).itemsize
        recorded = [
            (self._bin, written.tokens * token_bytes, written.bin_crc32),
            (self._sizes, written.items * 4, written.sizes_crc32),
        ]
        intact = all(file_crc32(file.name, length) == crc32 for file, length, crc32 in recorded)
        self.written = written if intact else Written()
        for file, length, _ in recorded:
            with naming(file.name):
                file.truncate(length if intact else 0)
                file.seek(0, os.SEEK_END)

    def _open(self, suffix: str) -> BinaryIO:
        path = self.prefix.with_name(self.prefix.name + suffix)
        with naming(path):
            # "r+" where a file may exist: appending only would not let it be cut off.
            return open(path, "r+b" if path.exists() else "w+b")

    def add(self, encoded: Encoded) -> None:
        """Append a unit."""
        written = self.written
        ends = encoded.ends
        if len(ends):
            sizes = np.diff(ends, prepend=0)
            sizes[0] += written.open_tokens
            # A file of nothing but what is left out makes no item.
            sizes = sizes[sizes > 0]
            if sizes.max(initial=0) > np.iinfo(np.int32).max:
                raise ValueError(
                    f"{self.prefix}: an item of {sizes.max()} tokens, and fairseq's format has room for 2^31 - 1; "
                    "cut the text into more files or lines"
                )
            content = sizes.astype(np.int32).tobytes()
            with naming(self._sizes.name):
                self._sizes.write(content)
            written.sizes_crc32 = zlib.crc32(content, written.sizes_crc32)
            written.items += len(sizes)
            written.open_tokens = len(encoded.ids) - int(ends[-1])
        else:
            written.open_tokens += len(encoded.ids)
        ids = np.ascontiguousarray(encoded.ids, dtype=self.dtype).data
        with naming(self._bin.name):
            self._bin.write(ids)
        written.bin_crc32 = zlib.crc32(ids, written.bin_crc32)
        written.units += 1
        written.tokens += len(encoded.ids)
        written.unknown += encoded.unknown

    def save(self) -> dict[str, Any]:
        """Bring all that is written onto the disk, and return what to record of it."""
        for file in (self._bin, self._sizes):
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        return asdict(self.written)

    def finish(self) -> int:
        """Write NAME.idx, and return its CRC-32."""
        if self.written.open_tokens:
            raise RuntimeError(f"{self.prefix}: the last item has not ended")
        self.save()
        path = self.prefix.with_name(self.prefix.name + ".idx")
        item_bytes = np.dtype(self.dtype).itemsize
        with naming(path):
            with MMapIndexedDataset.Index.writer(str(path), self.dtype):
                # Its header; it would take the sizes, and the places that follow from them, as lists of Python numbers.
                pass
            with open(path, "ab") as index:
                index.write(struct.pack("<Q", self.written.items))
                for sizes in self._read_sizes():
                    index.write(sizes.tobytes())
                place = 0
                for sizes in self._read_sizes():
                    ends = place + np.cumsum(sizes, dtype=np.int64) * item_bytes
                    index.write((ends - sizes * np.int64(item_bytes)).tobytes())
                    place = int(ends[-1])
        return file_crc32(path)

    def _read_sizes(self) -> Iterator[np.ndarray]:
        self._sizes.seek(0)
        while True:
            content = self._sizes.read(INDEX_ITEMS * 4)
            if not content:
                return
            yield np.frombuffer(content, dtype=np.int32)

    @property
    def sizes_path(self) -> str:
        """The file with the sizes of items; of no use once the finished index is recorded."""
        return self._sizes.name

    def close(self) -> None:
        """Close the files."""
        self._bin.close()
        self._sizes.close()
