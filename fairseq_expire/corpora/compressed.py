"""Compressed files: recognising them, reading their content, and unpacking them while data is made of it."""

import codecs
import gzip
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from fairseq_expire.files import atomic_file, existing_folder, file_crc32
from fairseq_expire.tokenizers.chunks import FileSlice

# A file with one of these suffixes is also known by its name without it.
SUFFIXES = (".gz", ".bz2", ".xz")
# Bytes of content to read at once.
BLOCK = 1 << 20
# Bytes at the beginning of a file that show what it is.
START = 1 << 16
# The folder of unpacked files, in the folder of the data.
UNPACKED = ".unpacked"

# Beginnings of files that are read as their content.
COMPRESSED = {"gzip": rb"\x1f\x8b\x08", "bzip2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "xz": rb"\xfd7zXZ\0"}
# Beginnings of files that are refused, long enough that no text has them.
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
    """Returns the compression of a file, by its content: "gzip", "bzip2", "xz" or None."""
    with open(path, "rb") as file:
        return _recognised(file.read(START), COMPRESSED)


def content_of(path: Path, *, block: int = BLOCK) -> Iterator[bytes]:
    """Yields the content of a file, unpacked if it is compressed, at most ``block`` bytes at a time.

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
        # Only errors of the system have a number; those of the decompressors do not.
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{path}: {kind} data that is damaged or cut short ({reason}); get the file again, or leave it out"
        ) from None


def _decompressor(path: Path, kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """Returns the class that decompresses a stream, and its error for a damaged one.

    Raises:
        ValueError: this Python was built without it.
    """
    try:
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
    """Yields the content of compressed streams that follow one another.

    Python's own readers ignore what follows the first stream if it is damaged, and so would lose text in silence.
    """
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
        # Tapes fill files up with zeros.
        while given and not given.strip(b"\0"):
            given = file.read(block)
        given = given.lstrip(b"\0")


def has_content(path: Path, *, text: bool) -> bool:
    """Checks the beginning of a file, unpacked if it is compressed.

    Args:
        path: of the file.
        text: refuse a file that is not text.

    Returns:
        False if the file holds nothing.

    Raises:
        ValueError: it is an archive, or compressed twice, or damaged, or refused.
        OSError: it cannot be read.
    """
    content = content_of(path, block=START)
    start = next(content, b"")
    # A compressed file of many short streams yields short blocks.
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
            f"{path}: {what}, not text; unpack it and give what is in it, or leave it out "
            "(data_prep/text.py has --exclude)"
        )
    if text:
        _check_text(path, start[:START], whole=len(start) <= START and not next(content, b""))
    return bool(start)


def _check_text(path: Path, start: bytes, *, whole: bool) -> None:
    """Raises ValueError if the beginning of a file is not text; ``whole`` tells that the file ends there."""
    advice = "leave it out, or take bytes for symbols (data_prep/text.py has --exclude and --level bytes)"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, final=whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); convert it, {advice}") from None
    place = start.find(b"\0")
    if place >= 0:
        raise ValueError(f"{path}: binary, or not UTF-8: it has a zero at byte {place}; convert it, {advice}")


def names_of(name: str) -> list[str]:
    """The names that a file is known by: its own, and the one without the suffix of a compressed file."""
    return [name, *(name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix))]


def find_named(folder: Path, name: str) -> Path | None:
    """Finds the file of this name in a folder, or else a compressed one. Returns None if there is none."""
    paths = [folder / (name + suffix) for suffix in ("", *SUFFIXES)]
    return next((path for path in paths if path.is_file()), None)


def unpack(splits: Mapping[str, Sequence[FileSlice]], folder: Path) -> dict[str, list[FileSlice]]:
    """Unpacks compressed files, so that their content can be read twice and in parts.

    Args:
        splits: whole files.
        folder: where data is made; they are unpacked into a folder in it, which :func:`remove_unpacked` removes.

    Returns:
        The same splits with the unpacked files instead of the compressed ones, and without those that hold nothing.

    Raises:
        ValueError: a file is damaged.
        OSError: there is no room, or a file cannot be read; names it.
    """
    unpacked = {}
    for path in dict.fromkeys(whole.path for wholes in splits.values() for whole in wholes):
        if compression(path):
            target = folder / UNPACKED / str(len(unpacked))
            target.parent.mkdir(exist_ok=True)
            try:
                with open(target, "wb") as file:
                    file.writelines(content_of(path))
            except OSError as error:
                # An error of reading has a name already. That of a full disk has none.
                raise OSError(error.errno, error.strerror, error.filename or str(target)) from None
            unpacked[path] = target

    def content(whole: FileSlice) -> FileSlice:
        if whole.path not in unpacked:
            return whole
        target = unpacked[whole.path]
        return replace(whole, path=target, stop=target.stat().st_size, source=whole.path)

    found = {name: map(content, wholes) for name, wholes in splits.items()}
    return {name: [whole for whole in wholes if whole.num_bytes] for name, wholes in found.items()}


def remove_unpacked(folder: Path) -> None:
    """Removes what :func:`unpack` left in ``folder``, if anything."""
    shutil.rmtree(folder / UNPACKED, ignore_errors=True)


def extract(archive: Path, members: Sequence[str], folder: Path) -> dict[str, Path]:
    """Extracts files of a zip archive.

    Nothing else is written, whatever the archive names. Files that are there already are kept if they have the CRC-32
    that the archive names.

    Args:
        archive: path of the archive.
        members: names of the files in it.
        folder: where to write them, under the last part of their names.

    Returns:
        The paths of the files, by their names in the archive.

    Raises:
        ValueError: not a zip archive, or damaged, or without one of the files.
    """
    paths = {member: folder / Path(member).name for member in members}
    try:
        with zipfile.ZipFile(archive) as content:
            checksums = {member: content.getinfo(member).CRC for member in members}
            with existing_folder(folder):
                for member, path in paths.items():
                    if not path.exists() or file_crc32(path) != checksums[member]:
                        with content.open(member) as source, atomic_file(path) as out:
                            shutil.copyfileobj(source, out, BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(
            f"{archive}: {' '.join(str(error).split())}; expected a zip archive with {', '.join(members)}"
        ) from None
    return paths
