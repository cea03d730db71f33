"""The files in a folder of checkpoints: which checkpoints are complete, and which memory files they need."""

import functools
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_expire.files import UNFINISHED
from fairseq_expire.streaming.memory_files import is_memory_file, name_of
from fairseq_expire.tokenizers.dictionary import DIGEST, LABEL_DIGEST

logger = logging.getLogger(__name__)


class _Progress(NamedTuple):
    """The number of updates of a checkpoint, and the name of its memory files, None if it has none."""

    updates: int
    memory: str | None


class ModelSummary(NamedTuple):
    """The digests of the dictionaries that a checkpoint's model was trained with, of inputs and of labels, None where
    it has none; the names of the weights; and whether there is a moving average of them."""

    digest: str | None
    label_digest: str | None
    weights: list[str]
    has_average: bool


def checkpoint_to_load(filename: str, *, suffix: str) -> str:
    """Returns the checkpoint to load in place of ``filename``.

    That is ``filename`` itself if it is complete or missing. If the last checkpoint of a folder is cut short, it is the
    complete one with the most updates.

    Args:
        filename: the checkpoint that fairseq asks for.
        suffix: of fairseq's checkpoint names.
    Raises:
        ValueError: the checkpoint is cut short and there is nothing to load instead.
    """
    path = Path(filename)
    if not path.is_file() or _is_complete(path):
        return filename
    problem = f"{path} is cut short ({path.stat().st_size} bytes are left)"
    found = [
        (progress.updates, other.stat().st_mtime_ns, other)
        for other in path.parent.glob(f"checkpoint*{suffix}.pt")
        if (progress := _progress_of(other)) is not None
    ]
    if not found:
        raise ValueError(f"{problem} and no complete checkpoint lies beside it: delete it to start anew")
    updates, _, other = max(found)
    if path.name != f"checkpoint_last{suffix}.pt":
        raise ValueError(f"{problem}: restore it, or take {other} ({updates} updates), the last complete one beside it")
    logger.warning("%s: going on from the last complete checkpoint, %s (%d updates)", problem, other, updates)
    return str(other)


def read_model_summary(path: str) -> ModelSummary | None:
    """Reads the summary of a checkpoint.

    Returns None if the file is missing or unreadable: loading all of it tells why.
    """
    try:
        # Memory-mapped, so that the weights are not read.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        digests = [state["cfg"]["model"].get(name) for name in (DIGEST, LABEL_DIGEST)]
        return ModelSummary(*digests, list(state["model"]), "ema" in state.get("extra_state", {}))
    # Any exception: torch's, or one of looking into what another program stored.
    except Exception:
        return None


def remove_leftovers(folder: Path) -> None:
    """Deletes the memory files that no checkpoint in the folder needs, and files that a kill left unfinished.

    No process may be writing there.
    """
    checkpoints = list(_checkpoints(folder))
    if not all(os.access(path, os.R_OK) for path in checkpoints):
        # It is unknown which files the unreadable ones need.
        return
    needed = {progress.memory for path in checkpoints if (progress := _progress_of(path)) is not None}
    for path in filter(is_memory_file, folder.iterdir()):
        if path.name.endswith(UNFINISHED) or name_of(path) not in needed:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"checkpoint*.pt{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*.pt") if not is_memory_file(path))


def _is_complete(path: Path) -> bool:
    """Returns whether a file of torch.save has its end.

    A file of another format counts as complete: torch tells what it is.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    return len(start) == 4 and (start != b"PK\x03\x04" or zipfile.is_zipfile(path))


def _progress_of(path: Path) -> _Progress | None:
    """Returns updates and memory name of a checkpoint; None if it is not a complete one of a training run."""
    status = os.stat(path)
    return _read_progress(path, status.st_mtime_ns, status.st_size, status.st_ino)


# Cached by the file's version: a checkpoint does not change, but another one may take its name.
@functools.lru_cache(maxsize=4096)
def _read_progress(path: Path, *version: int) -> _Progress | None:
    try:
        # Memory-mapped, so that the weights are not read.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        updates = state["optimizer_history"][-1]["num_updates"]
        # The task's part is under the name of its class.
        parts = [part for part in state["extra_state"].values() if isinstance(part, dict)]
    # Any exception: torch's, or one of looking into what another program stored.
    except Exception:
        return None
    return _Progress(updates, next((part["memory"] for part in parts if isinstance(part.get("memory"), str)), None))
