"""Writing one split in fairseq's mmap format, so that it can be gone on with after being killed at any moment."""
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_expire.data.files import naming
from fairseq_expire.data.level import Encoded

# Ends the name of the file that holds the sizes of items while they are written.
SIZES = ".sizes"

# Items whose places are worked out at once when the index is written.
INDEX_ITEMS = 1 << 18


@dataclass
class Written:
    """How much is written: `units` of text, as `tokens` ids in `items` that have ended and one that has `open_tokens` so
    far; `unknown` of the ids are `<unk>` for want of a symbol."""

    units: int = 0
    tokens: int = 0
    items: int = 0
    unknown: int = 0
    open_tokens: int = 0


class SplitWriter:
    """Appends encoded units to NAME.bin and the sizes of items to NAME.sizes, of which `finish` makes NAME.idx.

    The files are the same, byte for byte, as fairseq's own builder makes of the items, which keeps all sizes in memory.

    Args:
        folder, name: where to write.
        dtype: of ids.
        written: what an earlier run wrote and recorded; whatever it wrote after that is cut off.
    Raises:
        ValueError: if the files hold less than was recorded, or cannot be written.
    """

    def __init__(self, folder: Path, name: str, *, dtype: type, written: Written):
        self.prefix = Path(folder, name)
        self.dtype = dtype
        self.written = written
        # "r+" where a file may exist: appending only would not let it be cut off.
        self._bin = self._open(".bin", written.tokens * np.dtype(dtype).itemsize)
        self._sizes = self._open(SIZES, written.items * 4)

    def _open(self, suffix: str, length: int) -> BinaryIO:
        path = self.prefix.with_name(self.prefix.name + suffix)
        with naming(path):
            file = open(path, "r+b" if path.exists() else "w+b")
            if file.seek(0, os.SEEK_END) < length:
                raise ValueError(f"{path}: shorter than was recorded; delete {path.parent} and start again")
            file.truncate(length)
            file.seek(length)
        return file

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
            with naming(self._sizes.name):
                self._sizes.write(sizes.astype(np.int32).tobytes())
            written.items += len(sizes)
            written.open_tokens = len(encoded.ids) - int(ends[-1])
        else:
            written.open_tokens += len(encoded.ids)
        with naming(self._bin.name):
            self._bin.write(np.ascontiguousarray(encoded.ids, dtype=self.dtype).data)
        written.units += 1
        written.tokens += len(encoded.ids)
        written.unknown += encoded.unknown

    def save(self) -> Dict[str, Any]:
        """Bring all that is written onto the disk, and return what to record of it."""
        for file in (self._bin, self._sizes):
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        return asdict(self.written)

    def finish(self) -> None:
        """Write NAME.idx."""
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
