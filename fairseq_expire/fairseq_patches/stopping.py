"""The end of a run, which fairseq forgets when the run is started again.

fairseq would train for one more update after ``--max-update``, or until ``--patience`` has run out once more.
"""

import logging
import math
import sys

from fairseq.trainer import Trainer

logger = logging.getLogger(__name__)


def patience_state() -> dict[str, float] | None:
    """Returns the best validation so far, and how many there were since then; None before the first validation."""
    counter = _counter()
    if not hasattr(counter, "best"):
        return None
    return {"best": counter.best, "num_runs": counter.num_runs}


def load_patience_state(state: dict[str, float] | None) -> None:
    """Continues counting from a state that :func:`patience_state` returned."""
    if state is not None and _counter() is not None:
        vars(_counter()).update(state)


def _counter():
    """Returns fairseq's function that counts; None outside of fairseq-train."""
    # Looked up, because importing the command sets up logging. With `python -m` it is the main module.
    commands = (sys.modules.get(name) for name in ("fairseq_cli.train", "__main__"))
    return next((command.should_stop_early for command in commands if hasattr(command, "should_stop_early")), None)


def stop_if_over(trainer: Trainer, patience: dict[str, float] | None) -> None:
    """Keeps fairseq from training on if the loaded checkpoint is the last of its run.

    Args:
        trainer: fairseq's trainer with the checkpoint.
        patience: the :func:`patience_state` in the checkpoint.
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
    # The only condition that fairseq checks before the first update.
    trainer.cfg.optimization.stop_min_lr = math.inf
