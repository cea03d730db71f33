"""Going on with training from a checkpoint: a complete one, of the same model, with its memory, at the right place.

fairseq takes the file of the name that it looks for, whatever it holds, and forgets when a run was over.
"""

import functools
import logging
import os
from contextlib import contextmanager

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from fairseq_expire.fairseq_patches.best_metric import check_best_metric
from fairseq_expire.fairseq_patches.checkpoint_files import ModelSummary, checkpoint_to_load, read_model_summary
from fairseq_expire.fairseq_patches.overrides import options_of
from fairseq_expire.fairseq_patches.patched_task import PatchedTask
from fairseq_expire.fairseq_patches.stopping import stop_if_over
from fairseq_expire.fairseq_patches.trained_options import check_trained_options
from fairseq_expire.modules.config import check_weight_names

logger = logging.getLogger(__name__)


def install() -> None:
    """Wraps ``Trainer.load_checkpoint``, and ``fairseq.checkpoint_utils.load_checkpoint``, which calls it."""
    Trainer.load_checkpoint = _with_checks(Trainer.load_checkpoint)
    checkpoint_utils.load_checkpoint = _ready_to_train(checkpoint_utils.load_checkpoint)


def _with_checks(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint(
        self, filename, reset_optimizer=False, reset_lr_scheduler=False, optimizer_overrides=None, reset_meters=False
    ):
        """Loads a complete checkpoint of the same model, and tells the task where its memory files are.

        Raises:
            ValueError: there is no such checkpoint, or none that is complete, or it is of another model or dictionary.
        """
        resets = (reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        if not isinstance(self.task, PatchedTask):
            return fairseq_load(self, filename, *resets)
        if self.data_parallel_world_size > 1:
            # fairseq's broadcast would contain classes of omegaconf, which torch.load refuses by now.
            self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        restore_file = self.cfg.checkpoint.restore_file
        if restore_file != "checkpoint_last.pt" and not PathManager.isfile(filename):
            raise ValueError(
                f"--restore-file {restore_file}: there is no such file, and fairseq would train a new model; look at "
                "the spelling, or leave the option out"
            )
        filename = checkpoint_to_load(filename, suffix=self.checkpoint_suffix)
        summary = _checked_summary(filename, self.task)
        if self.cfg.ema.ema_seed_model:
            _checked_summary(self.cfg.ema.ema_seed_model, self.task)
        trained = options_of(filename)
        if trained is not None:
            difference = check_trained_options(filename, trained.model, self.cfg.model, weights_only=reset_optimizer)
            if difference:
                logger.info(difference)
        try:
            with _average_from(summary, self):
                extra_state = fairseq_load(self, filename, *resets)
        # fairseq replaces any error of a model by a plain Exception about architectures.
        except Exception as error:
            if type(error) is not Exception or not isinstance(error.__context__, ValueError):
                raise
            raise ValueError(f"{filename}: {error.__context__}") from error
        if extra_state is None:
            return None
        state = extra_state.setdefault(type(self.task).__name__, {})
        state["folder"] = os.path.dirname(filename)
        new_run = reset_optimizer or reset_meters or self.cfg.checkpoint.reset_dataloader
        stop_if_over(self, patience=None if new_run else state.get("patience"))
        if not reset_meters and extra_state["train_iterator"]["iterations_in_epoch"] == 0:
            # At the end of an epoch fairseq drops all meters, but the averages of --log-interval do not end with an
            # epoch.
            metrics.load_state_dict(
                {name: meter for name, meter in extra_state["metrics"].items() if name == "train_inner"}
            )
        return extra_state

    return load_checkpoint


def _checked_summary(path: str, task: PatchedTask) -> ModelSummary | None:
    """Returns the summary of a checkpoint, after a check of its dictionary; None if it cannot be read.

    Raises:
        ValueError: the model was trained with another dictionary than the task's.
    """
    summary = read_model_summary(path)
    if summary is not None:
        model = f"the checkpoint {path}"
        task.check_dictionaries(summary.digest, summary.label_digest, model=model)
        check_weight_names(summary.weights, model=model)
    return summary


@contextmanager
def _average_from(summary: ModelSummary | None, trainer: Trainer):
    """Lets ``--store-ema`` begin with the weights of a checkpoint without a moving average.

    fairseq would end in a KeyError.
    """
    options = trainer.cfg.ema
    begins = options.store_ema and summary is not None and not summary.has_average
    if begins:
        logger.info("the checkpoint holds no moving average: --store-ema begins one with its weights")
        options.store_ema = False
    try:
        yield
    finally:
        if begins:
            options.store_ema = True
    if begins:
        # The property makes the average from the current weights.
        trainer.ema  # noqa: B018


def _ready_to_train(fairseq_load):
    @functools.wraps(fairseq_load)
    def load_checkpoint(cfg, trainer, **arguments):
        """Does the last step before training. Begins the next epoch if the loaded one has no update left.

        Raises:
            ValueError: no validation will log the metric that ``--best-checkpoint-metric`` names.
        """
        extra_state, batches = fairseq_load(cfg, trainer, **arguments)
        if not isinstance(trainer.task, PatchedTask):
            return extra_state, batches
        check_best_metric(trainer)
        if batches.has_no_update:
            logger.info("no update is left of epoch %d: going on with the next one", batches.epoch)
            metrics.reset_meters("train")
            batches = trainer.get_train_iterator(batches.epoch + 1, load_dataset=True, **arguments)
            trainer.lr_step(batches.epoch)
        return extra_state, batches

    return load_checkpoint
