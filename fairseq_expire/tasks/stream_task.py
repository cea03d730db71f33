"""The part of a task that reads streams with a memory, whatever its targets are."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import get_available_dataset_impl
from fairseq.data.iterators import EpochBatchIterator
from fairseq.models import MODEL_REGISTRY
from omegaconf import DictConfig, open_dict

from fairseq_expire.criterions.expire_span_loss import log_label_errors
from fairseq_expire.fairseq_patches.bounds import keep_bounds_with_copies
from fairseq_expire.fairseq_patches.hydra import show_error_last
from fairseq_expire.fairseq_patches.patched_task import PatchedTask
from fairseq_expire.fairseq_patches.processes import check_processes_are_joined
from fairseq_expire.fairseq_patches.standard_streams import use_utf8
from fairseq_expire.fairseq_patches.stopping import load_patience_state, patience_state
from fairseq_expire.models.memory_lm import MemoryLanguageModel
from fairseq_expire.modules import LanguageModelConfig, let_waiting_threads_sleep
from fairseq_expire.modules.config import MODEL_CONFIG
from fairseq_expire.streaming.batch_iterator import MemoryBatchIterator
from fairseq_expire.streaming.blocks import BlockDataset, StreamDataset
from fairseq_expire.streaming.corpus import Corpus
from fairseq_expire.streaming.memory_files import read_memory
from fairseq_expire.streaming.published_units import ScoreSum, ScoringBatches
from fairseq_expire.streaming.token_stream import find_parts
from fairseq_expire.tasks.options import StreamConfig, add_save_memory
from fairseq_expire.tokenizers.dictionary import DIGEST, LABEL_DIGEST, check_dictionary, dictionary_digest

logger = logging.getLogger(__name__)


class StreamTask(PatchedTask):
    """Reads each split as contiguous rows, and gives every batch the memory of its pass.

    A pass is a training epoch, a validation or a scoring run. It starts with an empty memory and reads its rows in
    order. ``--batch-size`` is the number of rows, by default ``--max-tokens`` divided by the block. ``--update-freq n``
    reads n times as many rows, each with a memory of its own.

    Args:
        cfg: the options.
        dictionary: the dictionary of the inputs.
        labels: the dictionary of the labels; None where the targets are the next inputs.
    Raises:
        ValueError: if a value is out of its range.
    """

    # Name of the task on the command line.
    name: str
    # "bytes", "chars", "words", "subword"; None if it is unknown, or the inputs are no text.
    level: str | None = None

    def __init__(self, cfg: StreamConfig, dictionary: Dictionary, labels: Dictionary | None = None):
        super().__init__(cfg)
        let_waiting_threads_sleep()
        if cfg.tokens_per_sample < 1:
            raise ValueError(
                f"--tokens-per-sample is the number of tokens of a row read at once: expected at least 1, "
                f"got {cfg.tokens_per_sample}"
            )
        self.dictionary = dictionary
        self.label_dictionary = labels
        self._training: MemoryBatchIterator | None = None
        # Set when a new model is built, as only training does.
        self._trains = False

    @classmethod
    def add_args(cls, parser):
        add_save_memory(parser)
        super().add_args(parser)

    @staticmethod
    def check_start(cfg: StreamConfig) -> None:
        """Checks what can be checked before data is opened. Raises ValueError for a format that is not supported."""
        show_error_last()
        if str(cfg.dataset_impl) in set(get_available_dataset_impl()) - {"mmap"}:
            raise ValueError(
                f"--dataset-impl {cfg.dataset_impl}: streams are read from fairseq's mmap format alone; leave the "
                "option out, and prepare data of another format again"
            )

    def build_model(self, cfg, from_checkpoint=False):
        if not from_checkpoint:
            # Only training builds a model that is not in a checkpoint.
            check_processes_are_joined()
            self._trains = True
        else:
            self.check_dictionaries(cfg.get(DIGEST), cfg.get(LABEL_DIGEST), model="the checkpoint")
        # Options of an architecture without memory, which is refused below, may have another form.
        if isinstance(cfg, DictConfig):
            with open_dict(cfg):
                # What a model was trained with stays on, and checkpoints of earlier versions do not have the option.
                trained = from_checkpoint and cfg.get("break_memory_at_eos", False)
                cfg.break_memory_at_eos = self.cfg.break_memory_at_eos or trained
        model = super().build_model(cfg, from_checkpoint)
        if not isinstance(model, MemoryLanguageModel):
            known = sorted(name for name, kind in MODEL_REGISTRY.items() if issubclass(kind, MemoryLanguageModel))
            raise ValueError(
                f"--task {self.name} reads with a memory, which {type(model).__name__} does not have: expected "
                f"one of --arch {', '.join(known)} (or a checkpoint of one)"
            )
        # A checkpoint stores these options. With the range, the model does not depend on the block it is read with;
        # with the digest, it is not read with another dictionary of the same size; with the configuration, it is read
        # without fairseq.
        with open_dict(cfg):
            cfg.position_range = model.decoder.model.config.position_range
            cfg[DIGEST] = model.decoder.model.dictionary_digest
            cfg[LABEL_DIGEST] = self.label_dictionary and dictionary_digest(self.label_dictionary.symbols)
            cfg[MODEL_CONFIG] = _as_json(model.decoder.model.config)
        return model

    def check_dictionaries(self, digest: str | None, label_digest: str | None, *, model: str) -> None:
        """Raises ValueError if a model was trained with other dictionaries, or to predict the other kind of targets.

        Args:
            digest, label_digest: digests of the dictionaries of its inputs and of its labels; None where it has none.
            model: the name of the model in the error.
        """
        labels = self.label_dictionary
        # A model of another package has neither.
        if digest is not None and (labels is None) != (label_digest is None):
            kind, task = ("labels", "tagging") if labels is None else ("the next token", "lm")
            raise ValueError(
                f"{model} predicts {kind}, which --task {self.name} does not read: name --task memory_caching_{task} "
                "and its data"
            )
        check_dictionary(digest, self.dictionary.symbols, model=model, dictionary="the data's dict.txt")
        if labels is not None:
            check_dictionary(label_digest, labels.symbols, model=model, dictionary="the data's label/dict.txt")

    def optimizer_step(self, optimizer, model, update_num):
        super().optimizer_step(optimizer, model, update_num)
        keep_bounds_with_copies(optimizer, model)

    def parts(self, folder: str, split: str, combine: bool, *, training_needs_it: bool) -> list[str]:
        """Finds the files of a split, see :func:`find_parts`.

        Args:
            folder: the folder with the files.
            split, combine: as in :meth:`load_dataset`.
            training_needs_it: True if the split is trained on.
        Raises:
            FileNotFoundError: there is no such split.
        """
        try:
            return find_parts(folder, split, combine)
        except FileNotFoundError as error:
            if not self._trains or training_needs_it:
                raise
            raise FileNotFoundError(f"{error}, or train without validating (--disable-validation)") from None

    def add_split(self, split: str, corpus: Corpus, *, training: bool) -> None:
        """Adds a split that has been opened; ``training`` is True if it is trained on."""
        self.datasets[split] = StreamDataset(corpus, split=split, training=training)

    def get_batch_iterator(
        self,
        dataset: StreamDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        skip_remainder_batch: bool = False,
        **unused,
    ) -> EpochBatchIterator:
        """Returns an iterator over the blocks of this process.

        fairseq's other arguments sort, filter and shuffle samples; a stream has no samples.

        Raises:
            ValueError: the rows do not fit ``max_tokens``, or there are fewer tokens than rows.
        """
        rows, block = self._num_rows(max_sentences, max_tokens), self.cfg.tokens_per_sample
        micro_batches = 1
        if dataset.training:
            micro_batches = self.cfg.update_freq[min(epoch, len(self.cfg.update_freq)) - 1]
        batches = MemoryBatchIterator(
            self._blocks(dataset, rows, block, micro_batches, shard_id, num_shards),
            epoch=epoch,
            num_workers=num_workers,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
        )
        if dataset.training:
            if skip_remainder_batch and batches.dataset.num_blocks == 1:
                raise ValueError(
                    f"--skip-remainder-batch leaves out the last block of each epoch, and there is only one of {block} "
                    f"tokens of {rows * micro_batches * num_shards} rows: lower --tokens-per-sample or the number of "
                    "rows, or leave it out"
                )
            self._training = batches
            self._check_validation(num_shards, max_sentences, max_tokens)
        return batches

    def _num_rows(
        self,
        batch_size: int | None,
        max_tokens: int | None,
        *,
        options: tuple[str, str] = ("--batch-size", "--max-tokens"),
    ) -> int:
        """Returns B, the number of rows. Raises ValueError, with these names of the options, if it does not fit."""
        block = self.cfg.tokens_per_sample
        rows = max_tokens // block if batch_size is None else batch_size
        fits = max_tokens is None or rows * block <= max_tokens
        if not fits or (batch_size is None and rows < 1):
            raise ValueError(
                f"a batch of {max(rows, 1)} rows x {block} tokens ({options[0]} x --tokens-per-sample) exceeds "
                f"{options[1]} {max_tokens}: lower one or raise the other"
            )
        return rows

    def _check_validation(self, num_shards: int, batch_size: int | None, max_tokens: int | None) -> None:
        """Raises ValueError if a split for validation cannot be cut into rows; the first validation may be hours away.

        Args:
            num_shards: number of processes.
            batch_size, max_tokens: the values of training, which are the defaults of validation.
        """
        cfg = self.cfg
        if cfg.disable_validation:
            return
        options = (
            "--batch-size" if cfg.batch_size_valid == batch_size else "--batch-size-valid",
            "--max-tokens" if cfg.max_tokens_valid == max_tokens else "--max-tokens-valid",
        )
        rows = self._num_rows(cfg.batch_size_valid, cfg.max_tokens_valid, options=options)
        for dataset in self.datasets.values():
            if not dataset.training:
                self._blocks(dataset, rows, self.cfg.tokens_per_sample, 1, 0, num_shards)

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        if self.label_dictionary is not None:
            log_label_errors(logging_outputs, self.label_dictionary)

    def get_checkpoint_dict(self) -> dict[str, dict[str, Any]]:
        """Returns what fairseq stores for the task in a checkpoint."""
        return {type(self).__name__: {"memory": self.saved_memory, "patience": patience_state()}}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Continues with the memory of a checkpoint, or notes why not. The iterator is at its place already.

        Args:
            state: the value of :meth:`get_checkpoint_dict` in the checkpoint, with the checkpoint's ``folder``.
        """
        load_patience_state(state.get("patience"))
        batches, name = self._training, state.get("memory")
        if name is None or not batches.iterations_in_epoch or batches.layout_difference:
            return
        blocks = batches.dataset
        try:
            batches.load_memory_state(
                read_memory(Path(state["folder"]), name, process=blocks.shard_id, processes=blocks.num_shards)
            )
        except ValueError as error:
            batches.memory_pass.reread_reason = str(error)

    def eval_lm_dataloader(
        self,
        dataset: StreamDataset,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        max_positions=None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ):
        """Returns batches for ``fairseq-eval-lm``, of one row by default.

        Scores do not depend on the block, so ``--max-tokens`` shortens the block where fairseq would lower the batch.
        """
        if context_window != 0:
            raise ValueError(
                "--context-window gives each sample some context again; here every token is scored with the whole "
                "memory before it: leave the option out"
            )
        if torch.distributed.is_initialized():
            # fairseq starts a process for each GPU and adds nothing up: each scores everything, the first one prints.
            num_shards, shard_id = 1, 0
        # For the names of symbols in --output-word-probs.
        use_utf8()
        if max_tokens < 1:
            raise ValueError(
                f"--max-tokens is the number of tokens read at once: expected at least 1, got {max_tokens}"
            )
        rows = 1 if batch_size is None else batch_size
        block = min(self.cfg.tokens_per_sample, max(1, max_tokens // max(1, rows)))
        batches = MemoryBatchIterator(
            self._blocks(dataset, rows, block, 1, shard_id, num_shards),
            epoch=1,
            num_workers=num_workers,
            buffer_size=data_buffer_size,
            skip_remainder_batch=False,
        ).next_epoch_itr(shuffle=False)

        def report(score: ScoreSum) -> None:
            if not score.averaged:
                for line in self.score_lines(dataset.split, score):
                    logger.info("%s: %s", dataset.split, line)

        labels = self.label_dictionary
        return ScoringBatches(
            batches, ScoreSum(self.target_dictionary.pad(), None if labels is None else len(labels)), report
        )

    def score_lines(self, split: str, score: ScoreSum) -> list[str]:
        """Returns lines on the score of a whole split, which ``fairseq-eval-lm`` prints at its end."""
        return score.error_lines(self.target_dictionary.symbols)

    def _blocks(self, dataset, rows, block, micro_batches, shard_id, num_shards) -> BlockDataset:
        return BlockDataset(
            dataset.corpus,
            rows=rows,
            block=block,
            micro_batches=micro_batches,
            shard_id=shard_id,
            num_shards=num_shards,
        )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.label_dictionary or self.dictionary


def _as_json(config: LanguageModelConfig) -> str | None:
    """Returns the configuration as JSON.

    It is None if its policy is not one of ``POLICIES``, so that only its own code can make it.
    """
    try:
        return json.dumps(config.to_json())
    except ValueError:
        return None
