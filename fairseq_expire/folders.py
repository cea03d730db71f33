"""A folder that appears when it is complete, or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fairseq_expire.corpora import journal
from fairseq_expire.tokenizers.manifest import FILE_NAME

# Where the data that is replaced waits, in the folder that replaces it: no name outside is ours to take.
REPLACED = ".replaced"

# What is raised for input that cannot be had; other errors of the system (a full disk) may be over the next time.
WRONG_INPUT = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@contextmanager
def new_folder(dest: str | Path, *, force: bool = False, mark: str = FILE_NAME) -> Iterator[Path]:
    """Inside the `with`, a folder beside `dest`, named `dest`.partial; after it, that folder is named `dest`.

    It holds what an earlier run that was killed, interrupted or out of disk space left there, which whoever fills it is to
    go on with or to remove. An error of WRONG_INPUT inside the `with` says that the input is wrong. Then the folder is removed, unless it
    held something before, with which the same command may go on once its input is right. An empty folder is removed after any
    error. What `dest` held before is there until the end.

    Args:
        dest: where the folder shall be; folders above it are made.
        force: replace data that is there, but nothing else: a folder without the file ``mark`` is not ours to remove.
        mark: what such folders have.

    Raises:
        ValueError: there is something at `dest` already, or no folder can be made there, or another run is making it.
    """
    # A link would be renamed instead of what it points to.
    dest = Path(dest).resolve()
    partial = dest.with_name(dest.name + ".partial")
    _check(dest, force=force, mark=mark)
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
        if Path(partial, REPLACED).exists() and not dest.exists():
            # A run was killed between the two steps of replacing data.
            Path(partial, REPLACED).rename(dest)
            _check(dest, force=force, mark=mark)
        nothing_before = not any(partial.iterdir())
        try:
            yield partial
        except BaseException as error:
            if nothing_before and (isinstance(error, WRONG_INPUT) or not any(partial.iterdir())):
                shutil.rmtree(partial, ignore_errors=True)
                _remove_empty(above)
            raise
        if dest.exists():
            # Whatever came there in the meantime is not to be removed unasked either.
            _check(dest, force=force, mark=mark)
            dest.rename(partial / REPLACED)
        partial.rename(dest)
        shutil.rmtree(dest / REPLACED, ignore_errors=True)
        Path(dest, journal.FILE_NAME).unlink(missing_ok=True)
    finally:
        os.close(lock)


@contextmanager
def existing_folder(folder: Path) -> Iterator[None]:
    """Inside the `with`, the folder is there; if an error ends that with nothing in it, it is as it was before."""
    made = [folder for folder in (folder, *folder.parents) if not folder.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, unless there is something in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_new(dest: str | Path, *, force: bool) -> None:
    """Raises ValueError, as `new_folder` would, if there is something at `dest` that it would not replace."""
    _check(Path(dest).resolve(), force=force, mark=FILE_NAME)


def _check(dest: Path, *, force: bool, mark: str) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    if not Path(dest, mark).is_file():
        raise ValueError(f"{dest}: there already, and not data with a {mark}; choose another folder or move it away")
    if not force:
        raise ValueError(f"{dest}: there already, with data in it; add --force to replace it")
