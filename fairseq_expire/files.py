"""Files and folders that are complete or not there, checksums, and errors that name the file."""

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# The end of the name of an unfinished file. In an unfinished folder, the name of its mark, a folder that holds the data
# that is replaced.
UNFINISHED = ".unfinished"
REPLACED = f"{UNFINISHED}/replaced"

READ_BYTES = 1 << 20


@contextmanager
def naming_file_in_errors(path: str | Path) -> Iterator[None]:
    """Adds the name of a file to an OSError. That of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write. A kill leaves the old file or the new one, and perhaps an unfinished one beside it.

    An error inside the ``with`` leaves the old file and no unfinished one.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    with naming_file_in_errors(path):
        try:
            with open(unfinished, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except (Exception, KeyboardInterrupt):
            unfinished.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text in UTF-8. A kill leaves the old file or the new one."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    # Python 3.10 lacks hashlib.file_digest.
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            sha256.update(content)
    return sha256.hexdigest()


def file_crc32(path: str | Path) -> int:
    """The CRC-32 of a file."""
    crc32 = 0
    with open(path, "rb") as file:
        while content := file.read(READ_BYTES):
            crc32 = zlib.crc32(content, crc32)
    return crc32


@contextmanager
def new_folder(dest: str | Path, *, mark: str, force: bool = False) -> Iterator[Path]:
    """Makes a folder that appears when it is complete.

    Inside the ``with`` it has the name ``DEST.partial`` and is empty but for a hidden folder; after it, it has the name
    ``DEST``. An error removes it. What a killed run leaves there is removed by the next run. What ``dest`` held before
    stays until the end.

    Args:
        dest: the folder to make; folders above it are made, too.
        mark: name of a file that every complete folder of this kind holds.
        force: replace a folder that holds ``mark``. Nothing else is ever replaced.

    Raises:
        ValueError: there is something at ``dest`` already, or no folder can be made there.
        RuntimeError: another run writes to ``DEST.partial``, or this is not a folder of an unfinished run.
    """
    # Other systems than POSIX lack it. They read models, and never get here.
    import fcntl

    # A link would be renamed instead of what it points to.
    dest = Path(dest).resolve()
    partial = dest.with_name(dest.name + ".partial")
    check_replaceable(dest, mark=mark, force=force)
    above = [folder for folder in partial.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        _remove_empty(above)
        raise ValueError(
            f"{dest}: cannot be written ({error.strerror}: {error.filename}); choose another folder"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{partial}: another run is writing there; wait for it, or choose another folder"
            ) from None
        if any(partial.iterdir()) and not Path(partial, UNFINISHED).exists():
            raise RuntimeError(f"{partial}: not empty, and no unfinished data; move it away, or choose another folder")
        _empty(partial, dest)
        try:
            Path(partial, UNFINISHED).mkdir(exist_ok=True)
            # The folder may have come in the meantime, or have been put back; both must not be replaced unasked.
            check_replaceable(dest, mark=mark, force=force)
            yield partial
            check_replaceable(dest, mark=mark, force=force)
            if dest.exists():
                dest.rename(partial / REPLACED)
            partial.rename(dest)
        except BaseException:
            _empty(partial, dest)
            _remove_empty([partial / UNFINISHED, partial, *above])
            raise
        shutil.rmtree(dest / UNFINISHED, ignore_errors=True)
    finally:
        os.close(lock)


def _empty(partial: Path, dest: Path) -> None:
    """Removes what is in an unfinished folder, except its mark, and puts back the data that it was replacing."""
    if Path(partial, REPLACED).exists() and not dest.exists():
        Path(partial, REPLACED).rename(dest)
    for path in [*partial.iterdir(), partial / REPLACED]:
        if path.name == UNFINISHED:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def existing_folder(folder: Path) -> Iterator[None]:
    """Makes a folder if there is none. An error inside the ``with`` removes what was made if it is empty."""
    made = [folder for folder in (folder, *folder.parents) if not folder.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first, if they are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_replaceable(dest: str | Path, *, mark: str, force: bool) -> None:
    """Raises ValueError if there is something at ``dest`` that :func:`new_folder` would not replace."""
    dest = Path(dest).resolve()
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    if not Path(dest, mark).is_file():
        raise ValueError(f"{dest}: there already, and not data with a {mark}; choose another folder or move it away")
    if not force:
        raise ValueError(f"{dest}: there already, with data in it; add --force to replace it")
