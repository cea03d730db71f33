"""A folder that appears when it is complete, or not at all."""
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from fairseq_expire.data.manifest import FILE_NAME


@contextmanager
def new_folder(dest: Union[str, Path], *, force: bool = False) -> Iterator[Path]:
    """Inside the `with`, an empty folder beside `dest`, named `dest`.partial; after it, that folder is named `dest`.

    What an earlier run left under that name is removed first. If the `with` ends in an exception, nothing is left, and
    what `dest` held before is still there.

    Args:
        dest: where the folder shall be; folders above it are made.
        force: replace data that is there, but nothing else: a folder without a manifest.json is not ours to remove.

    Raises:
        ValueError: there is something at `dest` already, or no folder can be made there.
    """
    # A link would be renamed instead of what it points to.
    dest = Path(dest).resolve()
    _check(dest, force=force)
    partial = dest.with_name(dest.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{dest}: cannot be written ({error.strerror}: {error.filename}); choose another folder") from None
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if dest.exists():
        # Whatever came there in the meantime is not to be removed unasked either.
        _check(dest, force=force)
        shutil.rmtree(dest)
    partial.rename(dest)


def _check(dest: Path, *, force: bool) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    if not Path(dest, FILE_NAME).is_file():
        raise ValueError(f"{dest}: there already, and not data with a {FILE_NAME}; choose another folder or move it away")
    if not force:
        raise ValueError(f"{dest}: there already, with data in it; add --force to replace it")
