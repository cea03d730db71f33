"""What is wrong with a file that could not be read as a checkpoint, in words for its user."""

import os
import pickle
import re
import zipfile

import torch

# How torch names an object that would need code, "module.name".
FOREIGN = re.compile(r"GLOBAL (\S+)")
NO_MODEL = "holds no model with its options: expected a checkpoint that fairseq-train wrote"


def problem_of(path: str, error: Exception) -> str | None:
    """What follows on the file's name in a sentence; None if the file is a checkpoint, and the error is of something else.

    Args:
        path: of the file.
        error: what reading it as a checkpoint raised.
    """
    if os.path.isdir(path):
        return "is a folder: give a checkpoint in it, such as checkpoint_best.pt"
    if not os.path.isfile(path):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    foreign = FOREIGN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if foreign:
        return (
            f"holds more than tensors and plain values ({foreign.group(1)}), which could run any code when it is loaded: "
            "it is refused; take a checkpoint that fairseq-train wrote"
        )
    size = os.path.getsize(path)
    if not zipfile.is_zipfile(path):
        return f"is no checkpoint, or is cut short ({size:,} bytes): restore it, or take another one"
    try:
        # Mapped, so that only what is looked at is read.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    # Whatever torch makes of damage.
    except Exception:
        return f"is damaged ({size:,} bytes): restore it, or take another one"
    if not isinstance(state, dict) or "model" not in state or not ("cfg" in state or "args" in state):
        return NO_MODEL
    return None
