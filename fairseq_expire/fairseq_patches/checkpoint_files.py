"""The files in a folder of checkpoints: which checkpoints are complete, and which memory files they need."""

import functools
import logging
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_expire.streaming.memory_files import UNFINISHED, is_memory_file, set_of
from fairseq_expire.tokenizers.dictionary import DIGEST

logger = logging.getLogger(__name__)


class _Summary(NamedTuple):
    """How many updates a checkpoint has, and the name of the memory files that belong to it, if there are any."""

    updates: int
    memory: str | None


def last_complete(filename: str, *, suffix: str) -> str:
    """The checkpoint to load where ``filename`` is asked for: that one, if it is complete or not there. Else, for the last
    checkpoint of a folder, the one with the most updates of those that are complete.

    Args:
        suffix: of fairseq's checkpoint names.
    Raises:
        ValueError: if the checkpoint is cut short and there is nothing to load instead.
    """
    path = Path(filename)
    if not path.is_file() or _is_complete(path):
        return filename
    problem = f"{path} is cut short ({path.stat().st_size} bytes are left)"
    found = [
        (summary.updates, other.stat().st_mtime_ns, other)
        for other in path.parent.glob(f"checkpoint*{suffix}.pt")
        if (summary := _summary_of(other)) is not None
    ]
    if not found:
        raise ValueError(f"{problem} and no complete checkpoint lies beside it: delete it to start anew")
    updates, _, other = max(found)
    if path.name != f"checkpoint_last{suffix}.pt":
        raise ValueError(f"{problem}: restore it, or take {other} ({updates} updates), the last complete one beside it")
    logger.warning("%s: going on from the last complete checkpoint, %s (%d updates)", problem, other, updates)
    return str(other)


class Glance(NamedTuple):
    """The digest of the dictionary that a checkpoint was trained with, None if it holds none; the names of its weights; whether it
    holds a moving average of them."""

    digest: str | None
    names: list[str]
    has_average: bool


def glance(path: str) -> Glance | None:
    """None if there is no such checkpoint or it cannot be read: reading all of it says why."""
    try:
        # Mapped, so that only what is looked at is read.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return Glance(state["cfg"]["model"].get(DIGEST), list(state["model"]), "ema" in state.get("extra_state", {}))
    # Whatever torch raises, or looking at what another program stored.
    except Exception:
        return None


def remove_leftovers(folder: Path) -> None:
    """Deletes the memory files that no checkpoint in the folder needs, and what a kill left half written. Nothing may be
    being written."""
    checkpoints = list(_checkpoints(folder))
    if not all(os.access(path, os.R_OK) for path in checkpoints):
        # Nobody can tell which files these need.
        return
    needed = {summary.memory for path in checkpoints if (summary := _summary_of(path)) is not None}
    for path in filter(is_memory_file, folder.iterdir()):
        if path.name.endswith(UNFINISHED) or set_of(path) not in needed:
            path.unlink(missing_ok=True)
    for path in folder.glob("checkpoint*.pt.tmp"):
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path):
    return (path for path in folder.glob("*.pt") if not is_memory_file(path))


def _is_complete(path: Path) -> bool:
    """Whether a file of torch.save has its end; what does not begin as one is left to torch to judge."""
    with open(path, "rb") as file:
        start = file.read(4)
    return len(start) == 4 and (start != b"PK\x03\x04" or zipfile.is_zipfile(path))


def _summary_of(path: Path) -> _Summary | None:
    """None if the file is no complete checkpoint of a training run."""
    status = os.stat(path)
    return _read_summary(path, status.st_mtime_ns, status.st_size, status.st_ino)


# A checkpoint does not change, but another one may take its name.
@functools.lru_cache(maxsize=4096)
def _read_summary(path: Path, *version: int) -> _Summary | None:
    try:
        # Mapped, so that only what is looked at is read.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        updates = state["optimizer_history"][-1]["num_updates"]
        # A task has its part under the name of its class.
        parts = [part for part in state["extra_state"].values() if isinstance(part, dict)]
    # Whatever torch raises, or looking at what another program stored.
    except Exception:
        return None
    return _Summary(updates, next((part["memory"] for part in parts if isinstance(part.get("memory"), str)), None))
