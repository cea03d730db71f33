"""What fairseq's saving and loading lacks for a run with a memory to survive a kill.

fairseq asks a task for its state in the first process only, makes checkpoints by copying one in place, and takes whatever
it finds under the name it looks for. So some of its functions (of the one version that this package works with) get
something around them here, which does nothing unless the task is ours; and the ones that read the file for all commands take
weights with options alone, and say in a sentence what is wrong with one that is no checkpoint.
"""

import ast
import functools
import importlib.util
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass import initialize
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from fairseq_expire.fairseq_patches.best_metric import check_best_metric
from fairseq_expire.fairseq_patches.checkpoint_files import Glance, glance, last_complete, remove_leftovers
from fairseq_expire.fairseq_patches.hydra import end_with_the_sentence
from fairseq_expire.fairseq_patches.stopping import stop_if_over
from fairseq_expire.inference.checkpoint_problems import problem_of
from fairseq_expire.models.overrides import check_overrides, options_of
from fairseq_expire.models.trained_options import check_trained_options
from fairseq_expire.streaming.memory_files import new_name, write_memory
from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMTask
from fairseq_expire.tokenizers.dictionary import check_dictionary, check_names

logger = logging.getLogger(__name__)


def install() -> None:
    fairseq_defaults = initialize.add_defaults
    initialize.add_defaults = _with_defaults_of_the_task(fairseq_defaults)
    # The command has it by name, and is the main module if it was started with `python -m`. Importing it would set up logging.
    for name in ("fairseq_cli.train", "__main__"):
        if getattr(sys.modules.get(name), "add_defaults", None) is fairseq_defaults:
            sys.modules[name].add_defaults = initialize.add_defaults
    checkpoint_utils.load_checkpoint_to_cpu = _with_clear_errors(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils._upgrade_state_dict = _of_a_model_alone(checkpoint_utils._upgrade_state_dict)
    checkpoint_utils.save_checkpoint = _with_memory(checkpoint_utils.save_checkpoint)
    checkpoint_utils.load_checkpoint = _ready_to_train(checkpoint_utils.load_checkpoint)
    checkpoint_utils.load_model_ensemble_and_task = _with_known_overrides(checkpoint_utils.load_model_ensemble_and_task)
    Trainer.load_checkpoint = _from_complete(Trainer.load_checkpoint)


def _with_defaults_of_the_task(fairseq_defaults):
    @functools.wraps(fairseq_defaults)
    def add_defaults(cfg):
        """The first thing that fairseq-train does with its options. Soon after it looks for iopath, without a clear error."""
        fairseq_defaults(cfg)
        task = cfg.task
        if not OmegaConf.is_config(task) or task._name != "memory_caching_lm":
            return
        end_with_the_sentence()
        _keep_position_range(cfg)
        if not cfg.checkpoint.write_checkpoints_asynchronously:
            return
        if task.save_memory:
            raise ValueError(
                "--write-checkpoints-asynchronously writes checkpoints in place, where a kill cuts short the last good one, and "
                "later than the memory that belongs to them: leave it out, or give --no-save-memory"
            )
        if "iopath" not in sys.modules and importlib.util.find_spec("iopath") is None:
            raise ValueError(
                "--write-checkpoints-asynchronously needs iopath, which is not installed: pip install iopath, or leave it out"
            )

    return add_defaults


def _keep_position_range(cfg) -> None:
    """Trains on with the ``--position-range`` of the checkpoint unless another one is given: the default depends on the block, which may
    change."""
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


def _with_memory(fairseq_save):
    @functools.wraps(fairseq_save)
    def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
        """The memory first, by every process; then the checkpoint; then away with memories that no checkpoint needs now."""
        if not isinstance(trainer.task, MemoryCachingLMTask) or cfg.no_save:
            return fairseq_save(cfg, trainer, epoch_itr, val_loss)
        trainer.task.saved_memory = _saved_memory(Path(cfg.save_dir), trainer, epoch_itr)
        with _whole_copies():
            saved = fairseq_save(cfg, trainer, epoch_itr, val_loss)
        if trainer.is_data_parallel_master:
            remove_leftovers(Path(cfg.save_dir))
        return saved

    return save_checkpoint


def _saved_memory(folder: Path, trainer: Trainer, epoch_itr) -> str | None:
    """Writes the memory of this process and waits for the others; the name of it all. None if there is nothing to save: an
    epoch starts with an empty memory. Raises OSError or RuntimeError if a process cannot write its part."""
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
    # What torch makes of a full disk is of either kind.
    except (OSError, RuntimeError) as error:
        failure = error
    if processes > 1:
        # None waits for one that has failed.
        failures = [None] * processes
        torch.distributed.all_gather_object(failures, failure, group=trainer.data_parallel_process_group)
        failure = next((error for error in failures if error is not None), None)
    if failure is not None:
        raise failure
    return name


@contextmanager
def _whole_copies():
    """fairseq copies a checkpoint to its other names in place; here a copy appears when it is complete."""
    copy = PathManager.copy

    def copy_whole(src_path: str, dst_path: str, overwrite: bool = False):
        if not PathManager.supports_rename(dst_path):
            return copy(src_path, dst_path, overwrite=overwrite)
        unfinished = dst_path + ".tmp"
        done = copy(src_path, unfinished, overwrite=True)
        PathManager.rename(unfinished, dst_path)
        return done

    PathManager.copy = staticmethod(copy_whole)
    try:
        yield
    finally:
        PathManager.copy = staticmethod(copy)


@contextmanager
def _average_from(seen: Glance | None, trainer: Trainer):
    """Lets ``--store-ema`` begin with the weights of a checkpoint that has no moving average, where fairseq ends in a KeyError."""
    options = trainer.cfg.ema
    begins = options.store_ema and seen is not None and not seen.has_average
    if begins:
        logger.info("the checkpoint holds no moving average: --store-ema begins one with its weights")
        options.store_ema = False
    try:
        yield
    finally:
        if begins:
            options.store_ema = True
    if begins:
        # Asked for, it is made of the weights as they are now.
        trainer.ema


def _from_complete(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint(
        self, filename, reset_optimizer=False, reset_lr_scheduler=False, optimizer_overrides=None, reset_meters=False
    ):
        """A checkpoint that was cut short is not loaded; the task gets to know where the one that was loaded lies."""
        resets = (reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        if not isinstance(self.task, MemoryCachingLMTask):
            return fairseq_load(self, filename, *resets)
        if self.data_parallel_world_size > 1:
            # What the first process would send to the others holds omegaconf's classes, which torch does not load any more.
            self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        asked = self.cfg.checkpoint.restore_file
        if asked != "checkpoint_last.pt" and not PathManager.isfile(filename):
            raise ValueError(
                f"--restore-file {asked}: there is no such file, and fairseq would train a new model; look at the spelling, or "
                "leave the option out"
            )
        filename = last_complete(filename, suffix=self.checkpoint_suffix)
        checkpoints = {path: glance(path) for path in (filename, self.cfg.ema.ema_seed_model) if path}
        for path, seen in checkpoints.items():
            if seen is not None:
                model = f"the checkpoint {path}"
                check_dictionary(
                    seen.digest, self.task.dictionary.symbols, model=model, dictionary="the data's dict.txt"
                )
                check_names(seen.names, model=model)
        trained = options_of(filename)
        if trained is not None:
            other = check_trained_options(filename, trained.model, self.cfg.model, weights_only=reset_optimizer)
            if other:
                logger.info(other)
        try:
            with _average_from(checkpoints[filename], self):
                extra_state = fairseq_load(self, filename, *resets)
        # fairseq says of any error of a model that architectures have to match.
        except Exception as error:
            if type(error) is not Exception or not isinstance(error.__context__, ValueError):
                raise
            raise ValueError(f"{filename}: {error.__context__}") from error
        if extra_state is None:
            return None
        state = extra_state.setdefault(type(self.task).__name__, {})
        state["folder"] = os.path.dirname(filename)
        anew = reset_optimizer or reset_meters or self.cfg.checkpoint.reset_dataloader
        stop_if_over(self, patience=None if anew else state.get("patience"))
        if not reset_meters and extra_state["train_iterator"]["iterations_in_epoch"] == 0:
            # fairseq drops all meters here, but the line that is logged every --log-interval updates does not end with an epoch.
            metrics.load_state_dict(
                {name: meter for name, meter in extra_state["metrics"].items() if name == "train_inner"}
            )
        return extra_state

    return load_checkpoint


def _ready_to_train(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint(cfg, trainer, **arguments):
        """What fairseq does last before it trains. Begins the next epoch where nothing is left of the one that was loaded, which
        fairseq would train on; raises ValueError if validations will not log what they are to be compared by."""
        extra_state, batches = fairseq_load(cfg, trainer, **arguments)
        if not isinstance(trainer.task, MemoryCachingLMTask):
            return extra_state, batches
        check_best_metric(trainer)
        if batches.nothing_left:
            logger.info("no update is left of epoch %d: going on with the next one", batches.epoch)
            metrics.reset_meters("train")
            batches = trainer.get_train_iterator(batches.epoch + 1, load_dataset=True, **arguments)
            trainer.lr_step(batches.epoch)
        return extra_state, batches

    return load_checkpoint


def _with_known_overrides(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_model_ensemble_and_task(filenames, arg_overrides=None, task=None, *rest, **named):
        """Raises ValueError if ``--model-overrides`` names what is no option of the checkpoints."""
        given = arg_overrides or {}
        if "model_overrides" in given:
            # fairseq-validate puts all its own options in place of those in the checkpoint, and then these.
            check_overrides(filenames, ast.literal_eval(given["model_overrides"]))
        elif isinstance(task, MemoryCachingLMTask):
            check_overrides(filenames, given)
        return fairseq_load(filenames, arg_overrides, task, *rest, **named)

    return load_model_ensemble_and_task


def _of_a_model_alone(fairseq_upgrade):
    @functools.wraps(fairseq_upgrade)
    def upgrade_state_dict(state):
        """A checkpoint of weights and options alone, as tools leave it that throw away what only training needs, is as one of no
        updates."""
        if "cfg" in state and "model" in state and not {"optimizer_history", "best_loss"} & set(state):
            began = {"criterion_name": None, "optimizer_name": None, "lr_scheduler_state": {}, "num_updates": 0}
            state = {"optimizer_history": [began], "extra_state": {}, **state}
        return fairseq_upgrade(state)

    return upgrade_state_dict


def _with_clear_errors(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint_to_cpu(path, *arguments, **options):
        """Raises ValueError if the file is no checkpoint."""
        try:
            return fairseq_load(path, *arguments, **options)
        # What torch raises depends on where a file breaks off.
        except Exception as error:
            problem = problem_of(path, error)
            if problem is None:
                raise
            raise ValueError(f"{path} {problem}") from error

    return load_checkpoint_to_cpu
