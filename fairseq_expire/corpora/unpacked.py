"""Compressed text in files of its own while data is made of it: text is read twice, and in pieces."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fairseq_expire.corpora.compressed import compression, content_of
from fairseq_expire.corpora.sources import FileSlice

# The folder that they are in, in the folder of the data.
UNPACKED = ".unpacked"


def unpack(splits: Mapping[str, Sequence[FileSlice]], folder: Path) -> dict[str, list[FileSlice]]:
    """The same files with what the compressed ones hold, which is unpacked into a folder in `folder`; those that hold
    nothing are left out.

    What an earlier call unpacked there is used again, if the compressed file is the same; all else in there is removed.

    Raises:
        ValueError: a file is damaged.
        OSError: there is no room, or a file cannot be read; names it.
    """
    pieces = {piece.path: piece for parts in splits.values() for piece in parts}
    compressed = [path for path in pieces if compression(path)]
    place = folder / UNPACKED
    targets = {path: place / _key(path) for path in compressed}
    if place.exists():
        for path in set(place.iterdir()) - set(targets.values()):
            path.unlink()
    if targets:
        place.mkdir(exist_ok=True)
    for path, target in targets.items():
        if not target.exists():
            _unpack(path, target)
        pieces[path] = replace(pieces[path], path=target, stop=target.stat().st_size, source=path)
    return {
        name: [pieces[piece.path] for piece in parts if pieces[piece.path].num_bytes] for name, parts in splits.items()
    }


def _key(path: Path) -> str:
    """A name for what a file holds; as everywhere, a file is the same if its path, size and time of change are."""
    stat = path.stat()
    return hashlib.sha256(
        f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    ).hexdigest()


def _unpack(path: Path, target: Path) -> None:
    unfinished = target.with_name(target.name + ".part")
    try:
        with open(unfinished, "wb") as file:
            for block in content_of(path):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Where reading fails, the error names the file already; that of a full disk names none.
        raise OSError(error.errno, error.strerror, error.filename or str(unfinished)) from None
    unfinished.replace(target)


def remove_unpacked(folder: Path) -> None:
    """Remove what `unpack` left in `folder`, if anything."""
    shutil.rmtree(folder / UNPACKED, ignore_errors=True)
