"""fairseq's trainer, built as ``fairseq-train`` builds it, for tests that make single updates in this process."""

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
    """A training run, stopped before its next batch."""

    trainer: Trainer
    batches: Iterator[dict[str, Any]]

    @property
    def stack(self):
        return self.trainer.get_model().decoder.model.stack

    def step(self, *batches) -> dict[str, float] | None:
        """Makes one update from these batches, or from the next one. Returns None if the trainer left it out."""
        return self.trainer.train_step(list(batches) or [next(self.batches)])


def start(arguments: list[str], save_dir) -> Run:
    """Starts a run with the arguments of ``fairseq-train``, as ``processes.options`` gives them."""
    parser = options.get_training_parser()
    given = [*arguments, "--save-dir", str(save_dir)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, given))
    # With --bf16, the parser of fairseq-train (not that of fairseq-hydra-train) sets this.
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


def record_memories(monkeypatch) -> list[Memory | None]:
    """Returns a list to which each block that is read adds the memory that it starts from."""
    seen, read = [], LanguageModel.read

    def recorded(self, tokens, memory=None):
        seen.append(memory)
        return read(self, tokens, memory)

    monkeypatch.setattr(LanguageModel, "read", recorded)
    return seen


def identical(one: Memory, other: Memory) -> bool:
    """Compares two memories bit for bit."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
