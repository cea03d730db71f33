"""The scripts of data_prep, called in this process: an import of fairseq takes seconds."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "data_prep"


def load(name):
    """A script as a module, of its own for each call."""
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
