"""Saving a checkpoint together with its memory, so that a kill at any moment leaves a complete pair.

fairseq asks only the first process for the state of the task, and makes checkpoints with other names by copying in
place. Here every process writes its memory first, then the checkpoint is written, then memory files that no checkpoint
needs are deleted.
"""

import functools
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from fairseq_expire.fairseq_patches.checkpoint_files import remove_leftovers
from fairseq_expire.fairseq_patches.patched_task import PatchedTask
from fairseq_expire.files import UNFINISHED
from fairseq_expire.streaming.memory_files import new_name, write_memory


def install() -> None:
    """Wraps ``fairseq.checkpoint_utils.save_checkpoint``."""
    checkpoint_utils.save_checkpoint = _with_memory(checkpoint_utils.save_checkpoint)


def _with_memory(fairseq_save):
    @functools.wraps(fairseq_save)
    def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
        if not isinstance(trainer.task, PatchedTask) or cfg.no_save:
            return fairseq_save(cfg, trainer, epoch_itr, val_loss)
        trainer.task.saved_memory = _save_memory(Path(cfg.save_dir), trainer, epoch_itr)
        with _atomic_copies():
            saved = fairseq_save(cfg, trainer, epoch_itr, val_loss)
        if trainer.is_data_parallel_master:
            remove_leftovers(Path(cfg.save_dir))
        return saved

    return save_checkpoint


def _save_memory(folder: Path, trainer: Trainer, epoch_itr) -> str | None:
    """Writes the memory of this process and waits for the other processes.

    Returns:
        The name that the files of all processes share. None if there is nothing to save, as at the end of an epoch:
        the next one starts with an empty memory.
    Raises:
        OSError, RuntimeError: a process could not write its file.
    """
    if not trainer.task.cfg.save_memory or epoch_itr.end_of_epoch():
        return None
    process, processes = trainer.data_parallel_rank, trainer.data_parallel_world_size
    os.makedirs(folder, exist_ok=True)
    name = new_name(trainer.get_num_updates())
    if processes > 1:
        names = [None] * processes
        torch.distributed.all_gather_object(names, name, group=trainer.data_parallel_process_group)
        name = names[0]
    failure = None
    try:
        write_memory(folder, name, epoch_itr.memory_state(), process=process, processes=processes)
    # For a full disk torch raises either.
    except (OSError, RuntimeError) as error:
        failure = error
    if processes > 1:
        # All processes fail together, so that none waits for one that has failed.
        failures = [None] * processes
        torch.distributed.all_gather_object(failures, failure, group=trainer.data_parallel_process_group)
        failure = next((error for error in failures if error is not None), None)
    if failure is not None:
        raise failure
    return name


@contextmanager
def _atomic_copies():
    """Inside the ``with``, a copy that fairseq makes of a checkpoint appears only when it is complete."""
    copy = PathManager.copy

    def copy_and_rename(src_path: str, dst_path: str, overwrite: bool = False):
        if not PathManager.supports_rename(dst_path):
            return copy(src_path, dst_path, overwrite=overwrite)
        unfinished = dst_path + UNFINISHED
        done = copy(src_path, unfinished, overwrite=True)
        PathManager.rename(unfinished, dst_path)
        return done

    PathManager.copy = staticmethod(copy_and_rename)
    try:
        yield
    finally:
        PathManager.copy = staticmethod(copy)
