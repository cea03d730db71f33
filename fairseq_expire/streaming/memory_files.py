"""Memory files: what a training run remembers in the middle of an epoch, beside the checkpoint that refers to it.

One file for each process, ``<name>.<process>-of-<processes>.pt``, of plain types and tensors. A name is used once, so
that a file never replaces one that an older checkpoint needs.
"""

import os
import re
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch

from fairseq_expire.files import naming

# The name of a set of files begins so.
PREFIX = "memory_"
UNFINISHED = ".tmp"


def new_name(updates: int) -> str:
    """A name that no other save has."""
    return f"{PREFIX}{updates}_{secrets.token_hex(4)}"


def is_memory_file(path: Path) -> bool:
    """Whether a file (or what is there of it) has a name that :func:`write_memory` gives, and so is ours."""
    return re.fullmatch(rf"{PREFIX}\d+_[0-9a-f]{{8}}\.\d+-of-\d+\.pt({re.escape(UNFINISHED)})?", path.name) is not None


def set_of(path: Path) -> str:
    """The name that the checkpoint knows a file (or what is there of it) by."""
    return path.name.partition(".")[0]


def path_of(folder: Path, name: str, *, process: int, processes: int) -> Path:
    return folder / f"{name}.{process}-of-{processes}.pt"


def write_memory(folder: Path, name: str, state: dict[str, Any], *, process: int, processes: int) -> None:
    """Writes the file of one process; a kill leaves all of it or nothing. Raises OSError, naming the file."""
    path = path_of(folder, name, process=process, processes=processes)
    unfinished = path.with_name(path.name + UNFINISHED)
    with naming(path):
        with open(unfinished, "wb") as file:
            torch.save({"name": name, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def read_memory(folder: Path, name: str, *, process: int, processes: int) -> dict[str, Any]:
    """What :func:`write_memory` was given.

    Raises:
        ValueError: if the file is missing, cannot be read, is damaged, or is not the one of that name.
    """
    path = path_of(folder, name, process=process, processes=processes)
    if not path.exists():
        raise ValueError(f"{path} is missing")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not look at the checksums that it writes.
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a damaged file makes the reader raise.
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged")
    if state.pop("name", None) != name:
        raise ValueError(f"{path} holds the memory of another run")
    return state
