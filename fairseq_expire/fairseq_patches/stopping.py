"""When a run ends, which fairseq forgets when it is started again: without this, a run that was over would train on for one
more update (``--max-update``), or until it had been patient once more (``--patience``)."""

import logging
import math
import sys

from fairseq.trainer import Trainer

logger = logging.getLogger(__name__)


def patience_state() -> dict[str, float] | None:
    """The best validation so far and how many were no better since, as fairseq-train counts them; None if it does not."""
    counter = _counter()
    if not hasattr(counter, "best"):
        return None
    return {"best": counter.best, "num_runs": counter.num_runs}


def load_patience_state(state: dict[str, float] | None) -> None:
    """Goes on counting from there."""
    if state is not None and _counter() is not None:
        vars(_counter()).update(state)


def _counter():
    # Looked up, since importing the command sets up logging; it is the main module if it was started with `python -m`.
    commands = (sys.modules.get(name) for name in ("fairseq_cli.train", "__main__"))
    return next((command.should_stop_early for command in commands if hasattr(command, "should_stop_early")), None)


def stop_if_over(trainer: Trainer, patience: dict[str, float] | None) -> None:
    """Keeps fairseq from training on where a checkpoint is the last of its run.

    Args:
        patience: what the checkpoint has of :func:`patience_state`.
    """
    updates, limit = trainer.get_num_updates(), trainer.cfg.optimization.max_update or math.inf
    allowed = trainer.cfg.checkpoint.patience
    if updates >= limit:
        reason = f"it has {updates} updates, --max-update is {limit}"
    elif patience is not None and 0 < allowed <= patience["num_runs"]:
        reason = f"the last {patience['num_runs']} validations were no better, --patience is {allowed}"
    else:
        return
    logger.info("the checkpoint is the last of its run: %s", reason)
    # The one thing that fairseq looks at before it trains.
    trainer.cfg.optimization.stop_min_lr = math.inf
