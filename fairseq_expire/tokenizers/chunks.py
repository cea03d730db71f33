"""Parts of files: slices that make up a split, and chunks of them that are tokenized independently."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

# Bytes of text in a chunk: few enough to stay in the processor's cache.
CHUNK_BYTES = 1 << 20

# Bytes to search at once for the end of a very long word.
SEARCH_BYTES = 1 << 16


@dataclass(frozen=True)
class FileSlice:
    """Bytes [start, stop) of a file, at least one.

    Args:
        path: the file to read.
        start: offset of the first byte.
        stop: offset after the last byte.
        ends_file: True if the file ends at ``stop``.
        source: the compressed file that ``path`` was unpacked from, if any.
    """

    path: Path
    start: int
    stop: int
    ends_file: bool = True
    source: Path | None = None

    @property
    def name(self) -> Path:
        """The file that the user gave."""
        return self.source or self.path

    @property
    def num_bytes(self) -> int:
        """The number of bytes."""
        return self.stop - self.start


@dataclass(frozen=True)
class Chunk(FileSlice):
    """A part of a slice that is tokenized independently of the others.

    Args:
        ends_slice: True if the slice ends at ``stop``. For the others see :class:`FileSlice`.
    """

    ends_slice: bool = field(kw_only=True)

    def read(self) -> bytes:
        """Reads its bytes.

        Raises:
            ValueError: the file has become shorter since it was found.
        """
        with open(self.path, "rb") as file:
            file.seek(self.start)
            content = file.read(self.num_bytes)
        if len(content) < self.num_bytes:
            raise ValueError(
                f"{self.name}: ended at byte {self.start + len(content)}, it had {self.stop} before; start again"
            )
        return content

    def decode(self, content: bytes) -> str:
        """Decodes its bytes. Nothing is translated or skipped: a byte order mark is a character.

        Raises:
            ValueError: not UTF-8; names the file and the offset in it of the first bad byte.
        """
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}: not UTF-8 at byte {self.start + error.start} ({error.reason}); convert it, leave it "
                "out, or take bytes for symbols (data_prep/text.py has --exclude and --level bytes)"
            ) from None


# Finds where to cut an open file, given the offsets where the chunk starts, should stop and must stop.
Boundary = Callable[[BinaryIO, int, int, int], int]


def split_into_chunks(slices: Sequence[FileSlice], *, chunk_bytes: int, boundary: Boundary) -> Iterator[Chunk]:
    """Cuts slices into chunks of about ``chunk_bytes``, in order. Where they are cut depends on nothing else."""
    for whole in slices:
        if whole.num_bytes <= chunk_bytes:
            yield _chunk(whole, whole.start, whole.stop)
            continue
        with open(whole.path, "rb") as file:
            start = whole.start
            while start < whole.stop:
                stop = whole.stop
                if start + chunk_bytes < stop:
                    stop = boundary(file, start, start + chunk_bytes, stop)
                yield _chunk(whole, start, stop)
                start = stop


def _chunk(whole: FileSlice, start: int, stop: int) -> Chunk:
    last = stop == whole.stop
    return Chunk(whole.path, start, stop, last and whole.ends_file, whole.source, ends_slice=last)


def at_byte(file: BinaryIO, start: int, target: int, limit: int) -> int:
    """Cuts anywhere."""
    return target


def at_char(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""Cuts between characters, and not between "\r" and "\n"."""
    file.seek(target - 1)
    before, *after = file.read(5)
    stop = target
    # Text that is not UTF-8 may hold any number of these: decoding it raises an error.
    while stop < min(limit, target + 3) and 0x80 <= after[stop - target] < 0xC0:
        stop += 1
    if stop == target and before == 0x0D and after[0] == 0x0A:
        stop += 1
    return stop


def at_line(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""Cuts after the last "\n" before ``target``; in a line that is longer than that, between characters."""
    file.seek(start)
    end = file.read(target - start).rfind(b"\n") + 1
    return start + end if end else at_char(file, start, target, limit)


def at_word(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""Cuts after the last "\n" or space before ``target``; in a word that is longer than that, after its end."""
    file.seek(start)
    content = file.read(target - start)
    end = max(content.rfind(b"\n"), content.rfind(b" ")) + 1
    if end:
        return start + end
    while target < limit:
        content = file.read(min(SEARCH_BYTES, limit - target))
        ends = [place for place in (content.find(b"\n"), content.find(b" ")) if place >= 0]
        if ends:
            return target + min(ends) + 1
        target += len(content) or limit
    return limit
