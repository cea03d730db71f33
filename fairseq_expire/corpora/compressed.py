"""Text files that are compressed: what they hold, and what tells them from text, archives and other binary files."""

import codecs
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# A file that ends with one of these is also known by its name without it.
SUFFIXES = (".gz", ".bz2", ".xz")
# Bytes of content at once, and of a file's beginning, which tells what it is.
BLOCK = 1 << 20
START = 1 << 16

# What files begin with that are read as what they hold.
COMPRESSED = {"gzip": rb"\x1f\x8b\x08", "bzip2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "xz": rb"\xfd7zXZ\0"}
# What others begin with, long enough that no text does.
ARCHIVES = {
    "zip": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    "tar": rb".{257}ustar[\0 ]",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "rar": rb"Rar!\x1a\x07",
    "zstd": rb"[\x22-\x28]\xb5\x2f\xfd",
    "lz4": rb"(\x04\x22\x4d|\x02\x21\x4c)\x18",
    "lzma": rb"\x5d\0\0.{2}\xff{8}",
    "lzip": rb"LZIP[\0\x01]",
    "lzop": rb"\x89LZO\0\r\n\x1a\n",
    "compress": rb"\x1f[\x9d\xa0]",
    "snappy": rb"\xff\x06\0\0sNaPpY",
    "cab": rb"MSCF\0{4}",
    "ar": rb"!<arch>\n",
    "cpio": rb"07070[12][0-9A-Fa-f]{104}|070707[0-7]{70}",
}


def _recognised(start: bytes, kinds: Mapping[str, bytes]) -> str | None:
    return next((kind for kind, pattern in kinds.items() if re.match(pattern, start, re.DOTALL)), None)


def compression(path: str | Path) -> str | None:
    """Returns the compression of a file by its content: "gzip", "bzip2", "xz", or None."""
    with open(path, "rb") as file:
        return _recognised(file.read(START), COMPRESSED)


def content_of(path: Path, *, block: int = BLOCK) -> Iterator[bytes]:
    """The content of a file, unpacked if it is compressed, at most `block` bytes at a time.

    Raises:
        ValueError: it is compressed, and damaged or cut short.
        OSError: it cannot be read; names it.
    """
    kind = compression(path)
    try:
        with open(path, "rb") as file:
            if kind is None:
                yield from iter(lambda: file.read(block), b"")
            elif kind == "gzip":
                with gzip.open(file) as content:
                    yield from iter(lambda: content.read(block), b"")
            else:
                yield from _streams(file, *_decompressor(path, kind), block)
    except (EOFError, zlib.error, OSError) as error:
        # Errors of the system have a number, those of the decompressors have none.
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{path}: {kind} data that is damaged or cut short ({reason}); get the file again, or leave it out"
        ) from None


def _decompressor(path: Path, kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """The class that decompresses a stream of this kind, and its error for a damaged one. Raises ValueError if Python lacks it."""
    try:
        # Not every Python is built with them.
        if kind == "bzip2":
            from bz2 import BZ2Decompressor

            return BZ2Decompressor, OSError
        from lzma import LZMADecompressor, LZMAError

        return LZMADecompressor, LZMAError
    except ImportError as error:
        raise ValueError(
            f"{path}: {kind} data, which this Python cannot read ({error}); unpack it and give what is in it"
        ) from None


def _streams(file: BinaryIO, start: Callable[[], Any], damaged: type[Exception], block: int) -> Iterator[bytes]:
    """The content of compressed streams that follow one another. Python's own readers take whatever is behind the first one
    for the end, so that damage there would lose text in silence."""
    given = file.read(block)
    while given:
        decompressor = start()
        while not decompressor.eof:
            if decompressor.needs_input and not given:
                given = file.read(block)
                if not given:
                    raise EOFError("the end is missing")
            try:
                content = decompressor.decompress(given, block)
            except damaged as error:
                raise EOFError(str(error)) from None
            given = b""
            if content:
                yield content
        given = decompressor.unused_data or file.read(block)
        # Zeros may fill a file up.
        while given and not given.strip(b"\0"):
            given = file.read(block)
        given = given.lstrip(b"\0")


def check_readable(path: Path, *, text: bool) -> bool:
    """Checks the beginning of a file, unpacked if it is compressed. Returns True if the file holds anything.

    Args:
        path: of the file.
        text: whether it is to be read as text.
    Raises:
        ValueError: it is an archive, or compressed twice, or damaged; or it is no text and should be.
        OSError: it cannot be read.
    """
    content = content_of(path, block=START)
    start = next(content, b"")
    # A block may be as short as the streams that a file is put together of.
    while len(start) < START:
        more = next(content, b"")
        if not more:
            break
        start += more
    compressed = compression(path)
    archive = _recognised(start, ARCHIVES) or (compressed and _recognised(start, COMPRESSED))
    if archive:
        what = f"{compressed} data of {archive} data" if compressed else f"{archive} data"
        raise ValueError(
            f"{path}: {what}, not text; unpack it and give what is in it, or leave it out (data_prep/text.py has --exclude)"
        )
    if text:
        _check_text(path, start[:START], whole=len(start) <= START and not next(content, b""))
    return bool(start)


def _check_text(path: Path, start: bytes, *, whole: bool) -> None:
    """Raises ValueError if the beginning of a file is not that of text; `whole` says whether it ends there."""
    advice = "leave it out, or take bytes for symbols (data_prep/text.py has --exclude and --level bytes)"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, final=whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); convert it, {advice}") from None
    place = start.find(b"\0")
    if place >= 0:
        raise ValueError(f"{path}: binary, or not UTF-8: it has a zero at byte {place}; convert it, {advice}")


def names_of(name: str) -> list[str]:
    """The names that a file is known by: its own, and that without the suffix of a compressed file."""
    return [name, *(name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix))]


def find_named(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, or else a compressed one of this name and a suffix; None if there is none."""
    paths = [folder / (name + suffix) for suffix in ("", *SUFFIXES)]
    return next((path for path in paths if path.is_file()), None)
