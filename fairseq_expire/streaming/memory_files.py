"""Memory files: the memories of a training run in the middle of an epoch, beside the checkpoint that names them.

Each process has one file, ``<name>.<process>-of-<processes>.pt``, of plain types and tensors. A name is used only once,
so that a file never replaces one that an older checkpoint needs.
"""

import re
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch

from fairseq_expire.files import UNFINISHED, atomic_file

# Start of the names of all memory files.
PREFIX = "memory_"


def new_name(updates: int) -> str:
    """Returns a name that no other save has."""
    return f"{PREFIX}{updates}_{secrets.token_hex(4)}"


def is_memory_file(path: Path) -> bool:
    """Returns True if a file, finished or not, has a name of :func:`write_memory`."""
    return re.fullmatch(rf"{PREFIX}\d+_[0-9a-f]{{8}}\.\d+-of-\d+\.pt({re.escape(UNFINISHED)})?", path.name) is not None


def name_of(path: Path) -> str:
    """Returns the name by which the checkpoint knows a file, finished or not."""
    return path.name.partition(".")[0]


def path_of(folder: Path, name: str, *, process: int, processes: int) -> Path:
    """Returns the path of the file of one process."""
    return folder / f"{name}.{process}-of-{processes}.pt"


def write_memory(folder: Path, name: str, state: dict[str, Any], *, process: int, processes: int) -> None:
    """Writes the file of one process; a kill leaves the whole file or none.

    Args:
        folder: the folder of the checkpoint.
        name: a new name, the same in all processes.
        state: plain types and tensors.
        process: the number of this process.
        processes: number of processes.
    Raises:
        OSError: if the file cannot be written; the error names it.
    """
    with atomic_file(path_of(folder, name, process=process, processes=processes)) as file:
        torch.save({"name": name, **state}, file)


def read_memory(folder: Path, name: str, *, process: int, processes: int) -> dict[str, Any]:
    """Returns the state that :func:`write_memory` wrote.

    Raises:
        ValueError: if the file is missing, cannot be read, is damaged, or was written under another name.
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
            # torch does not check the checksums that it writes.
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes the reader raise exceptions of many types.
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged")
    if state.pop("name", None) != name:
        raise ValueError(f"{path} holds the memory of another run")
    return state
