"""Checks and defaults of a training run, before fairseq does anything with its options."""

import functools
import importlib.util
import os
import sys

from fairseq.dataclass import initialize
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf

from fairseq_expire.fairseq_patches.hydra import show_error_last
from fairseq_expire.fairseq_patches.overrides import options_of
from fairseq_expire.fairseq_patches.patched_task import PatchedTask


def install() -> None:
    """Wraps ``fairseq.dataclass.initialize.add_defaults``, the first function that training calls with its options."""
    fairseq_defaults = initialize.add_defaults
    initialize.add_defaults = _with_checks(fairseq_defaults)
    # fairseq_cli.train has imported the function by name, and is the main module if it was started with `python -m`. It
    # is looked up, because importing it would set up logging.
    for name in ("fairseq_cli.train", "__main__"):
        if getattr(sys.modules.get(name), "add_defaults", None) is fairseq_defaults:
            sys.modules[name].add_defaults = initialize.add_defaults


def _with_checks(fairseq_defaults):
    @functools.wraps(fairseq_defaults)
    def add_defaults(cfg):
        """Raises ValueError for ``--write-checkpoints-asynchronously`` where it cannot work."""
        fairseq_defaults(cfg)
        task = cfg.task
        if not OmegaConf.is_config(task) or not issubclass(TASK_REGISTRY.get(task._name, object), PatchedTask):
            return
        show_error_last()
        _keep_position_range(cfg)
        if not cfg.checkpoint.write_checkpoints_asynchronously:
            return
        if task.save_memory:
            raise ValueError(
                "--write-checkpoints-asynchronously writes checkpoints in place, where a kill cuts short the last good "
                "one, and later than the memory that belongs to them: leave it out, or give --no-save-memory"
            )
        # fairseq looks for it soon after, without a clear error.
        if "iopath" not in sys.modules and importlib.util.find_spec("iopath") is None:
            raise ValueError(
                "--write-checkpoints-asynchronously needs iopath, which is not installed: pip install iopath, or leave "
                "it out"
            )

    return add_defaults


def _keep_position_range(cfg) -> None:
    """Takes ``--position-range`` from the checkpoint that training goes on from, unless the option is given.

    Its default depends on ``--tokens-per-sample``, which may change between runs.
    """
    if not OmegaConf.is_config(cfg.model) or cfg.model.get("position_range", 0) is not None:
        return
    restored = cfg.checkpoint.restore_file
    if restored == os.path.basename(restored):
        restored = os.path.join(cfg.checkpoint.save_dir, restored)
    for path in (restored, cfg.checkpoint.finetune_from_model):
        trained = options_of(path) if path and os.path.isfile(path) else None
        if trained is not None and trained.model.get("position_range") is not None:
            cfg.model.position_range = trained.model.position_range
            return
