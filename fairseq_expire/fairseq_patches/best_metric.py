"""An early check of ``--best-checkpoint-metric``, which fairseq looks for only after the first validation."""

import logging

import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer

logger = logging.getLogger(__name__)

# Metrics that every criterion wants to be small, as it does those that begin with "error_".
LOSSES = ("loss", "nll_loss", "ppl", "bpc", "expire_loss", "error", "answer_error")


def check_best_metric(trainer: Trainer) -> None:
    """Changes nothing of the run. All processes have to call it together.

    Raises:
        ValueError: no validation will log the metric, or there are no validations to compare.
    """
    cfg, dataset = trainer.cfg.checkpoint, trainer.cfg.dataset
    metric = cfg.best_checkpoint_metric
    if dataset.disable_validation:
        for option, value in (("--patience", cfg.patience), ("--keep-best-checkpoints", cfg.keep_best_checkpoints)):
            if value > 0:
                raise ValueError(
                    f"{option} {value} compares validations, and --disable-validation leaves them out: leave out one "
                    "of the two"
                )
        return
    if cfg.maximize_best_checkpoint_metric and (metric in LOSSES or metric.startswith("error_")):
        logger.warning("--maximize-best-checkpoint-metric keeps the checkpoint with the largest %s as the best", metric)
    # Every criterion logs its loss.
    if metric == "loss":
        return
    names = logged_names(trainer, dataset.valid_subset.split(",")[0])
    if metric not in names:
        names = [name for name in names if name not in ("num_updates", "wps", "wpb", "bsz")]
        raise ValueError(
            f"--best-checkpoint-metric {metric}: no validation logs that with --criterion "
            f"{trainer.cfg.criterion._name}; expected one of {', '.join(names)}"
        )


@torch.no_grad()
def logged_names(trainer: Trainer, subset: str) -> list[str]:
    """Returns the names that a validation on a split logs.

    It validates on the first batch, as fairseq's trainer does.
    """
    dummy = trainer._dummy_batch
    batch = trainer.get_valid_iterator(subset).first_batch
    trainer.reset_dummy_batch(dummy)
    trainer.model.eval()
    trainer.criterion.eval()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    # The run's own random numbers and log stay as they are.
    with torch.random.fork_rng(devices), metrics.aggregate(new_root=True) as logged:
        sample, is_dummy = trainer._prepare_sample(batch)
        _, sample_size, log = trainer.criterion(trainer.model, sample)
        logs = [log]
        if trainer.data_parallel_world_size > 1:
            logs, (sample_size,) = trainer._aggregate_logging_outputs(logs, sample_size, ignore=is_dummy)
        trainer._reduce_and_log_stats(logs, sample_size)
    return sorted([*logged.get_smoothed_values(), "num_updates"])
