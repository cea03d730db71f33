"""Files that cannot be read as checkpoints, and the reason in words for the user."""

import os
import pickle
import re
import zipfile

import torch

# The text in which torch names an object that would need code, "module.name".
FOREIGN = re.compile(r"GLOBAL (\S+)")
NO_MODEL = "holds no model with its options: expected a checkpoint that fairseq-train wrote"


def problem_of(path: str, error: Exception) -> str | None:
    """Explains why a file cannot be read as a checkpoint.

    Args:
        path: the file.
        error: the exception that reading it raised.
    Returns:
        the rest of an error message that begins with the path; None if the file is a sound checkpoint, and so not the
        cause.
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
            f"holds more than tensors and plain values ({foreign.group(1)}), which could run any code when it is "
            "loaded: it is refused; take a checkpoint that fairseq-train wrote"
        )
    size = os.path.getsize(path)
    if not zipfile.is_zipfile(path):
        return f"is no checkpoint, or is cut short ({size:,} bytes): restore it, or take another one"
    try:
        # Mapped files are read only where they are used.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    # Damage makes torch raise exceptions of many types.
    except Exception:
        return f"is damaged ({size:,} bytes): restore it, or take another one"
    if not isinstance(state, dict) or "model" not in state or not ("cfg" in state or "args" in state):
        return NO_MODEL
    return None
