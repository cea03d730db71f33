"""A check of the metric that the best checkpoint is chosen by: fairseq looks for it only when the first validation is over."""

import logging

import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer

logger = logging.getLogger(__name__)

# Of all criterions that log one of these, the less the better.
LOSSES = ("loss", "nll_loss", "ppl", "bpc", "expire_loss")


def check_best_metric(trainer: Trainer) -> None:
    """Raises ValueError if no validation will log what checkpoints are compared by, or there will be none to compare.

    All processes have to call it together; it changes nothing of the run.
    """
    cfg, dataset = trainer.cfg.checkpoint, trainer.cfg.dataset
    metric = cfg.best_checkpoint_metric
    if dataset.disable_validation:
        for option, value in (("--patience", cfg.patience), ("--keep-best-checkpoints", cfg.keep_best_checkpoints)):
            if value > 0:
                raise ValueError(
                    f"{option} {value} compares validations, and --disable-validation leaves them out: leave out one of the two"
                )
        return
    if cfg.maximize_best_checkpoint_metric and metric in LOSSES:
        logger.warning("--maximize-best-checkpoint-metric keeps the checkpoint with the largest %s as the best", metric)
    # Every criterion logs its loss.
    if metric == "loss":
        return
    names = logged_names(trainer, dataset.valid_subset.split(",")[0])
    if metric not in names:
        names = [name for name in names if name not in ("num_updates", "wps", "wpb", "bsz")]
        raise ValueError(
            f"--best-checkpoint-metric {metric}: no validation logs that with --criterion {trainer.cfg.criterion._name}; "
            f"expected one of {', '.join(names)}"
        )


@torch.no_grad()
def logged_names(trainer: Trainer, subset: str) -> list[str]:
    """What a validation on a split logs: found with its first batch, as fairseq's trainer validates on one."""
    dummy = trainer._dummy_batch
    batch = trainer.get_valid_iterator(subset).first_batch
    trainer.reset_dummy_batch(dummy)
    trainer.model.eval()
    trainer.criterion.eval()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    # Nothing is added to what is logged of the run.
    with torch.random.fork_rng(devices), metrics.aggregate(new_root=True) as logged:
        sample, is_dummy = trainer._prepare_sample(batch)
        _, sample_size, log = trainer.criterion(trainer.model, sample)
        logs = [log]
        if trainer.data_parallel_world_size > 1:
            logs, (sample_size,) = trainer._aggregate_logging_outputs(logs, sample_size, ignore=is_dummy)
        trainer._reduce_and_log_stats(logs, sample_size)
    return sorted([*logged.get_smoothed_values(), "num_updates"])
