"""``fairseq-eval-lm --path a.pt:b.pt``: the average of several models, each with a memory of its own.

fairseq's scorer averages models, and all its other commands split ``--path``; this one (in the supported version) hands the
option over as the name of one file. So where a task of ours loads its models, names are split as the other commands do.
"""

import functools
import os
from collections.abc import Iterable

from fairseq import checkpoint_utils, utils
from fairseq.file_io import PathManager


def split_names(names: Iterable[str]) -> list[str]:
    """``["a.pt:b.pt"]`` as ``["a.pt", "b.pt"]``; a file that exists is taken by its name, whatever is in it."""
    split: list[str] = []
    for name in names:
        split += utils.split_paths(name) if os.pathsep in name and not PathManager.exists(name) else [name]
    return split


def split_names_for(task_class: type) -> None:
    """From now on fairseq splits the names of checkpoints that it loads into a task of this class."""
    load = checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(load)
    def load_each(filenames, arg_overrides=None, task=None, *rest, **named):
        if isinstance(task, task_class):
            filenames = split_names(filenames)
        return load(filenames, arg_overrides, task, *rest, **named)

    checkpoint_utils.load_model_ensemble_and_task = load_each
