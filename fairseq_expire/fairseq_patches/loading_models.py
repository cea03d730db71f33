"""Loading models from checkpoints in all of fairseq's commands: clear errors, several files, weights without history.

For every task: a file that is no checkpoint gives a clear error, a checkpoint may lack its history or hold an
``argparse.Namespace``, and ``fairseq-validate`` refuses unknown ``--model-overrides``. For the tasks of this package:
``--path a.pt:b.pt`` is split, and all commands refuse unknown overrides.
"""

import ast
import functools
import os
from argparse import Namespace
from collections.abc import Iterable

import torch
from fairseq import checkpoint_utils, utils
from fairseq.file_io import PathManager

from fairseq_expire.fairseq_patches.overrides import check_overrides
from fairseq_expire.fairseq_patches.patched_task import PatchedTask
from fairseq_expire.inference.checkpoint_problems import problem_of


def install() -> None:
    """Wraps three functions of ``fairseq.checkpoint_utils``, and lets torch load the options of older translation
    models.
    """
    checkpoint_utils.load_checkpoint_to_cpu = _with_clear_errors(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils._upgrade_state_dict = _without_history(checkpoint_utils._upgrade_state_dict)
    checkpoint_utils.load_model_ensemble_and_task = _with_checked_arguments(
        checkpoint_utils.load_model_ensemble_and_task
    )
    # torch from 2.6 on refuses the Namespace in which fairseq's translation models (--lm-path) keep their options. It
    # only holds values.
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([Namespace])


def _with_clear_errors(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint_to_cpu(path, *arguments, **options):
        """Raises ValueError if the file is no checkpoint."""
        try:
            return fairseq_load(path, *arguments, **options)
        # torch's exception depends on where a file is cut.
        except Exception as error:
            problem = problem_of(path, error)
            if problem is None:
                raise
            raise ValueError(f"{path} {problem}") from error

    return load_checkpoint_to_cpu


def _without_history(fairseq_upgrade):
    @functools.wraps(fairseq_upgrade)
    def upgrade_state_dict(state):
        """Takes a checkpoint of weights and options alone, as some tools write it, as one of no updates."""
        if "cfg" in state and "model" in state and not {"optimizer_history", "best_loss"} & set(state):
            start = {"criterion_name": None, "optimizer_name": None, "lr_scheduler_state": {}, "num_updates": 0}
            state = {"optimizer_history": [start], "extra_state": {}, **state}
        return fairseq_upgrade(state)

    return upgrade_state_dict


def _with_checked_arguments(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_model_ensemble_and_task(filenames, arg_overrides=None, task=None, *rest, **named):
        """Splits ``--path a.pt:b.pt``.

        Raises:
            ValueError: ``--model-overrides`` names an option that no checkpoint has.
        """
        if isinstance(task, PatchedTask):
            filenames = split_names(filenames)
        overrides = arg_overrides or {}
        if "model_overrides" in overrides:
            # fairseq-validate passes all its own options as overrides, and these among them.
            check_overrides(filenames, ast.literal_eval(overrides["model_overrides"]))
        elif isinstance(task, PatchedTask):
            check_overrides(filenames, overrides)
        return fairseq_load(filenames, arg_overrides, task, *rest, **named)

    return load_model_ensemble_and_task


def split_names(names: Iterable[str]) -> list[str]:
    """Splits ``["a.pt:b.pt"]`` into ``["a.pt", "b.pt"]``, which ``fairseq-eval-lm``, unlike other commands, forgets.

    The name of an existing file is kept, whatever characters it has.
    """
    split: list[str] = []
    for name in names:
        split += utils.split_paths(name) if os.pathsep in name and not PathManager.exists(name) else [name]
    return split
