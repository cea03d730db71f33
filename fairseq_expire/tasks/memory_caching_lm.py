"""The task of language modelling over contiguous streams, with a memory that outlives the batch."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import get_available_dataset_impl
from fairseq.data.iterators import EpochBatchIterator
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import register_task
from omegaconf import open_dict

from fairseq_expire.fairseq_patches.bounds import keep_bounds_with_copies
from fairseq_expire.fairseq_patches.fusion import check_target_dictionary
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
from fairseq_expire.streaming.memory_files import read_memory
from fairseq_expire.streaming.prompts import PromptDataset, StreamItems
from fairseq_expire.streaming.published_units import ScoreSum, ScoringBatches, score_lines
from fairseq_expire.streaming.token_stream import TokenStream, find_parts
from fairseq_expire.tasks.data_folder import check_split, read_dictionary
from fairseq_expire.tasks.options import MemoryCachingLMConfig, add_save_memory
from fairseq_expire.tasks.prompting import PromptingTask
from fairseq_expire.tokenizers.dictionary import DIGEST, check_dictionary
from fairseq_expire.tokenizers.manifest import Manifest, read_manifest

logger = logging.getLogger(__name__)

NO_ITEMS = (
    "reads a split as one stream, across the borders of its items: leave out --sample-break-mode eos, with which "
    "fairseq-generate takes each item as a prompt"
)


@register_task("memory_caching_lm", dataclass=MemoryCachingLMConfig)
class MemoryCachingLMTask(PatchedTask, PromptingTask):
    """Reads each split as contiguous rows, and gives every batch the memory of its pass.

    A pass is a training epoch, a validation or a scoring run. It starts with an empty memory and reads its rows in
    order; every token of the split is a target exactly once. ``--batch-size`` is the number of rows, by default
    ``--max-tokens`` divided by the block. ``--update-freq n`` reads n times as many rows, each with a memory of its
    own.
    """

    def __init__(self, cfg: MemoryCachingLMConfig, dictionary: Dictionary, manifest: Manifest | None):
        super().__init__(cfg)
        let_waiting_threads_sleep()
        if cfg.tokens_per_sample < 1:
            raise ValueError(
                f"--tokens-per-sample is the number of tokens of a row read at once: expected at least 1, "
                f"got {cfg.tokens_per_sample}"
            )
        self.dictionary = dictionary
        # Of the data in the first folder, if it has one.
        self.manifest = manifest
        # "bytes", "chars", "words", "subword", or None if it is unknown.
        self.level = manifest.level if manifest else None
        if cfg.utf8 and self.level != "bytes":
            level = self.level or "words, by all that is known"
            raise ValueError(
                f"--utf8 is for models of bytes, and the symbols in {cfg.data} are {level}: leave the option out"
            )
        self._training: MemoryBatchIterator | None = None
        # Set when a new model is built, as only training does.
        self._trains = False

    @classmethod
    def add_args(cls, parser):
        add_save_memory(parser)
        super().add_args(parser)

    @classmethod
    def setup_task(cls, cfg: MemoryCachingLMConfig, from_checkpoint: bool = False):
        show_error_last()
        if str(cfg.dataset_impl) in set(get_available_dataset_impl()) - {"mmap"}:
            raise ValueError(
                f"--dataset-impl {cfg.dataset_impl}: streams are read from fairseq's mmap format alone; leave the "
                "option out, and prepare data of another format again"
            )
        folders = [Path(folder) for folder in utils.split_paths(cfg.data)]
        dictionary = read_dictionary(folders[0])
        _check_borders(cfg, folders[0])
        for folder in folders[1:]:
            read_dictionary(folder)
            _check_borders(cfg, folder)
            if (folder / "dict.txt").read_bytes() != (folders[0] / "dict.txt").read_bytes():
                raise ValueError(
                    f"{folder}/dict.txt differs from {folders[0]}/dict.txt: the same numbers would stand for other "
                    "symbols; prepare all folders with one dictionary (data_prep/text.py --dict)"
                )
        if from_checkpoint:
            check_target_dictionary(folders[0], dictionary)
        manifest = read_manifest(folders[0])
        logger.info("dictionary: %d types (%s)", len(dictionary), manifest.level if manifest else "level unknown")
        return cls(cfg, dictionary, manifest)

    def build_model(self, cfg, from_checkpoint=False):
        if not from_checkpoint:
            # Only training builds a model that is not in a checkpoint.
            check_processes_are_joined()
            self._trains = True
        else:
            check_dictionary(
                cfg.get(DIGEST), self.dictionary.symbols, model="the checkpoint", dictionary="the data's dict.txt"
            )
        with open_dict(cfg):
            # What a model was trained with stays on, and checkpoints of earlier versions do not have the option.
            trained = from_checkpoint and cfg.get("break_memory_at_eos", False)
            cfg.break_memory_at_eos = self.cfg.break_memory_at_eos or trained
        model = super().build_model(cfg, from_checkpoint)
        if not isinstance(model, MemoryLanguageModel):
            known = sorted(name for name, kind in MODEL_REGISTRY.items() if issubclass(kind, MemoryLanguageModel))
            raise ValueError(
                f"--task memory_caching_lm reads with a memory, which {type(model).__name__} does not have: expected "
                f"one of --arch {', '.join(known)} (or a checkpoint of one)"
            )
        # A checkpoint stores these options. With the range, the model does not depend on the block it is read with;
        # with the digest, it is not read with another dictionary of the same size; with the configuration, it is read
        # without fairseq.
        with open_dict(cfg):
            cfg.position_range = model.decoder.model.config.position_range
            cfg[DIGEST] = model.decoder.model.dictionary_digest
            cfg[MODEL_CONFIG] = _as_json(model.decoder.model.config)
        return model

    def optimizer_step(self, optimizer, model, update_num):
        super().optimizer_step(optimizer, model, update_num)
        keep_bounds_with_copies(optimizer, model)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Opens a split.

        Raises:
            FileNotFoundError: a file of the split is missing.
            ValueError: a file is damaged; the message names it.
        """
        folders = utils.split_paths(self.cfg.data)
        folder = folders[(epoch - 1) % len(folders)]
        try:
            parts = find_parts(folder, split, combine)
        except FileNotFoundError as error:
            if not self._trains or "data_selector" in kwargs:
                raise
            raise FileNotFoundError(f"{error}, or train without validating (--disable-validation)") from None
        dictionary = self.dictionary
        stream = TokenStream(parts, num_symbols=len(dictionary), pad=dictionary.pad(), unk=dictionary.unk())
        if len(parts) == 1:
            check_split(Path(folder), split, tokens=len(stream))
        logger.info("%s: %d tokens in %s", split, len(stream), ", ".join(parts))
        if self.cfg.sample_break_mode == "eos":
            if "data_selector" in kwargs:
                raise ValueError(f"fairseq-train {NO_ITEMS}")
            items = StreamItems(stream)
            self.datasets[split] = self.prompts(items, items.sizes, strip_eos=True)
            return
        # Only fairseq's trainer passes a data selector. It tells training from validating or scoring the same split,
        # for which --update-freq means nothing.
        self.datasets[split] = StreamDataset(stream, split=split, training="data_selector" in kwargs)

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
        """Returns an iterator over the blocks of this process, or over the prompts to continue.

        fairseq's other arguments sort, filter and shuffle samples; a stream has no samples.

        Raises:
            ValueError: the rows do not fit ``max_tokens``, or there are fewer tokens than rows.
        """
        if isinstance(dataset, PromptDataset):
            return EpochBatchIterator(
                dataset=dataset,
                collate_fn=dataset.collater,
                batch_sampler=dataset.batch_by_size(dataset.ordered_indices(), max_tokens, max_sentences),
                num_shards=num_shards,
                shard_id=shard_id,
                num_workers=num_workers,
                buffer_size=data_buffer_size,
            )
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
        if isinstance(dataset, PromptDataset):
            raise ValueError(f"fairseq-eval-lm {NO_ITEMS}")
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
            if self.manifest and not score.averaged:
                for line in score_lines(self.manifest, dataset.split, tokens=score.tokens, bits=score.bits):
                    logger.info("%s: %s", dataset.split, line)

        return ScoringBatches(batches, ScoreSum(self.dictionary.pad()), report)

    def _blocks(self, dataset, rows, block, micro_batches, shard_id, num_shards) -> BlockDataset:
        return BlockDataset(
            dataset.stream,
            rows=rows,
            block=block,
            micro_batches=micro_batches,
            shard_id=shard_id,
            num_shards=num_shards,
            eos=self.dictionary.eos(),
        )

    def valid_step(self, sample, model, criterion):
        if self.cfg.sample_break_mode == "eos":
            raise ValueError(f"fairseq-validate {NO_ITEMS}")
        return super().valid_step(sample, model, criterion)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary


def _check_borders(cfg: MemoryCachingLMConfig, folder: Path) -> None:
    """Raises ValueError if ``</s>`` would end a document where it ends every line."""
    if not cfg.break_memory_at_eos:
        if cfg.lines_are_documents:
            raise ValueError("--lines-are-documents only works together with --break-memory-at-eos")
        return
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if manifest.lines_end_in_eos and not cfg.lines_are_documents:
        raise ValueError(
            f"in {folder} every line ends in </s> ({manifest.level}), and --break-memory-at-eos would forget all at "
            "each: leave it out, make data of which only documents end in </s> (data_prep/text.py --append-eos, not "
            "words), or say that each line is a document with --lines-are-documents"
        )
    if not (manifest.lines_end_in_eos or manifest.append_eos):
        logger.warning(
            "no document in %s ends in </s>, so that --break-memory-at-eos finds no border there: make the data with "
            "data_prep/text.py --append-eos",
            folder,
        )


def _as_json(config: LanguageModelConfig) -> str | None:
    """Returns the configuration as JSON.

    It is None if its policy is not one of ``POLICIES``, so that only its own code can make it.
    """
    try:
        return json.dumps(config.to_json())
    except ValueError:
        return None
