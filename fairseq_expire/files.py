"""Files that are written whole or not at all, and errors that name them."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError inside the `with` names the file, which that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one; text in UTF-8."""
    unfinished = path.with_name(path.name + ".unfinished")
    with naming(path):
        with open(unfinished, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    # hashlib.file_digest does the same, from Python 3.11 on.
    with open(path, "rb") as file:
        while content := file.read(1 << 20):
            sha256.update(content)
    return sha256.hexdigest()


def file_crc32(path: str | Path, length: int | None = None) -> int | None:
    """The CRC-32 of a file, or of its first `length` bytes; None if it does not have so many."""
    crc32, left = 0, os.path.getsize(path) if length is None else length
    with open(path, "rb") as file:
        while left:
            content = file.read(min(left, 1 << 20))
            if not content:
                return None
            crc32 = zlib.crc32(content, crc32)
            left -= len(content)
    return crc32
