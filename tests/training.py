"""fairseq's trainer, as ``fairseq-train`` makes it, to be stepped by hand in this process."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from fairseq_expire.modules import LanguageModel, Memory


@dataclass
class Run:
    """A training run that stands before its next batch."""

    trainer: Trainer
    batches: Iterator[dict[str, Any]]

    @property
    def stack(self):
        return self.trainer.get_model().decoder.model.stack

    def step(self, *batches) -> dict[str, float] | None:
        """One update from these batches, or from the next one; None if it was left out."""
        return self.trainer.train_step(list(batches) or [next(self.batches)])


def start(arguments: list[str], save_dir) -> Run:
    """``arguments`` are those of ``fairseq-train``, as from ``processes.options``."""
    parser = options.get_training_parser()
    given = [*arguments, "--save-dir", str(save_dir)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, given))
    # To the parser of fairseq-train, but not to that of fairseq-hydra-train, --bf16 means a TPU.
    cfg.common.tpu = False
    metrics.reset()
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("valid")
    trainer = Trainer(cfg, task, model, criterion)
    batches = trainer.get_train_iterator(1)
    trainer.begin_epoch(1)
    return Run(trainer, batches.next_epoch_itr(shuffle=False))


def memories_read(monkeypatch) -> list[Memory | None]:
    """A list to which every reading of a block adds the memory that it starts from."""
    seen, read = [], LanguageModel.read

    def recorded(self, tokens, memory=None):
        seen.append(memory)
        return read(self, tokens, memory)

    monkeypatch.setattr(LanguageModel, "read", recorded)
    return seen


def same(one: Memory, other: Memory) -> bool:
    """Bit for bit."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
