"""The runs of text that are read, counted and turned into symbols at once, each without looking at the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fairseq_expire.corpora.sources import FileSlice

# Bytes of text in a unit: little enough to stay in the processor's cache.
UNIT_BYTES = 1 << 20

# How far to look at once for the end of a very long word.
SEARCH_BYTES = 1 << 16


@dataclass(frozen=True)
class Unit:
    """Bytes [start, stop) of the file at `path`, never none, and what ends at `stop`: the piece it was cut from, the file.
    `source` as a piece has it."""

    path: Path
    start: int
    stop: int
    ends_piece: bool
    ends_file: bool
    source: Path | None = field(default=None, kw_only=True)

    @property
    def name(self) -> Path:
        """The file that was given."""
        return self.source or self.path

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start

    def read(self) -> bytes:
        """Its bytes.

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
        """The text of its bytes; nothing is translated or skipped, and a byte order mark is a character.

        Raises:
            ValueError: not UTF-8; names the file and the offset in it of the first bad byte.
        """
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}: not UTF-8 at byte {self.start + error.start} ({error.reason}); convert it, leave it out, or take "
                "bytes for symbols (data_prep/text.py has --exclude and --level bytes)"
            ) from None


# The offset to cut an open file at, given where the unit starts, where it should stop, and where it has to stop.
Boundary = Callable[[BinaryIO, int, int, int], int]


def split_into_units(pieces: Sequence[FileSlice], *, unit_bytes: int, boundary: Boundary) -> Iterator[Unit]:
    """The pieces in order, each in units of about `unit_bytes`; where they are cut depends on nothing else."""
    for piece in pieces:
        if piece.num_bytes <= unit_bytes:
            yield Unit(piece.path, piece.start, piece.stop, True, piece.ends_file, source=piece.source)
            continue
        with open(piece.path, "rb") as file:
            start = piece.start
            while start < piece.stop:
                stop = piece.stop
                if start + unit_bytes < stop:
                    stop = boundary(file, start, start + unit_bytes, stop)
                last = stop == piece.stop
                yield Unit(piece.path, start, stop, last, last and piece.ends_file, source=piece.source)
                start = stop


def at_byte(file: BinaryIO, start: int, target: int, limit: int) -> int:
    """Anywhere."""
    return target


def at_char(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""Between characters, and not between "\r" and "\n"."""
    file.seek(target - 1)
    before, *after = file.read(5)
    stop = target
    # Text that is not UTF-8 may hold any number of these: an error will say so when it is read.
    while stop < min(limit, target + 3) and 0x80 <= after[stop - target] < 0xC0:
        stop += 1
    if stop == target and before == 0x0D and after[0] == 0x0A:
        stop += 1
    return stop


def at_line(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""After the last "\n" before `target`; in a line that is longer than that, between characters."""
    file.seek(start)
    end = file.read(target - start).rfind(b"\n") + 1
    return start + end if end else at_char(file, start, target, limit)


def at_word(file: BinaryIO, start: int, target: int, limit: int) -> int:
    r"""After the last "\n" or space before `target`; in a word that is longer than that, after its end."""
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
