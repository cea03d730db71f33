"""Loads the scripts of data_prep into this process, since a new process would spend seconds on importing fairseq."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "data_prep"


def load(name):
    """Loads a script as a new module."""
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
