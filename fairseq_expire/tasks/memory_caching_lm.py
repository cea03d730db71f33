"""Language modelling over contiguous streams, with a memory that outlives the batch."""

import argparse
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING, open_dict

from fairseq_expire.data.manifest import Manifest, read_manifest
from fairseq_expire.data.memory_files import read_memory
from fairseq_expire.data.memory_pass import MemoryBatchIterator
from fairseq_expire.data.score import Tally, TalliedBatches, score_lines
from fairseq_expire.data.stream import BlockDataset, StreamDataset, TokenStream, find_parts
from fairseq_expire.models.memory_lm import MemoryLanguageModel

from .bounds import keep_bounds_of
from .stopping import load_patience_state, patience_state

logger = logging.getLogger(__name__)


@dataclass
class MemoryCachingLMConfig(FairseqDataclass):
    data: str = field(
        default=MISSING, metadata={"help": "path to the data-bin; several, separated by ':', are read one an epoch"}
    )
    tokens_per_sample: int = field(
        default=512, metadata={"help": "tokens of each row read at once (the block, T); the memory reaches far beyond"}
    )
    save_memory: bool = field(
        default=True,
        metadata={
            "help": "write what is remembered in the middle of an epoch beside the checkpoint, so that a run that was "
            "stopped goes on as if it had not been"
        },
    )
    update_freq: List[int] = II("optimization.update_freq")


@register_task("memory_caching_lm", dataclass=MemoryCachingLMConfig)
class MemoryCachingLMTask(FairseqTask):
    """Reads each split as contiguous rows and hands every batch the memory of its pass.

    A pass (a training epoch, a validation, a scoring run) starts cold and reads its rows in order; every token of the
    split is a target exactly once. ``--batch-size`` is the number of rows, without it ``--max-tokens`` divided by the
    block; ``--update-freq n`` reads n times as many rows, each with a memory of its own.
    """

    def __init__(self, cfg: MemoryCachingLMConfig, dictionary: Dictionary, manifest: Optional[Manifest]):
        super().__init__(cfg)
        if cfg.tokens_per_sample < 1:
            raise ValueError(
                f"--tokens-per-sample is the number of tokens of a row read at once: expected at least 1, "
                f"got {cfg.tokens_per_sample}"
            )
        self.dictionary = dictionary
        # What the first folder's data is, where it says so.
        self.manifest = manifest
        # What a token is ("bytes", "chars", "words", "subword"), or None.
        self.level = manifest.level if manifest else None
        # Where the memory that belongs to the checkpoint being written is; None if none does. See checkpoints.py.
        self.saved_memory: Optional[str] = None
        self._training: Optional[MemoryBatchIterator] = None

    @classmethod
    def add_args(cls, parser):
        """fairseq would make ``--save-memory``, which is on, an option that turns it off."""
        option = MemoryCachingLMConfig.__dataclass_fields__["save_memory"]
        parser.add_argument(
            "--save-memory",
            action=argparse.BooleanOptionalAction,
            default=option.default,
            help=option.metadata["help"],
        )
        super().add_args(parser)

    @classmethod
    def setup_task(cls, cfg: MemoryCachingLMConfig, **kwargs):
        folders = [Path(folder) for folder in utils.split_paths(cfg.data)]
        for folder in folders:
            check_dictionary(folder)
            if (folder / "dict.txt").read_bytes() != (folders[0] / "dict.txt").read_bytes():
                raise ValueError(
                    f"{folder}/dict.txt differs from {folders[0]}/dict.txt: the same numbers would stand for other symbols; "
                    "prepare all folders with one dictionary (data_prep/text.py --dict)"
                )
        dictionary = Dictionary.load(str(folders[0] / "dict.txt"))
        manifest = read_manifest(folders[0])
        logger.info("dictionary: %d types (%s)", len(dictionary), manifest.level if manifest else "level unknown")
        return cls(cfg, dictionary, manifest)

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if not isinstance(model, MemoryLanguageModel):
            known = sorted(name for name, kind in MODEL_REGISTRY.items() if issubclass(kind, MemoryLanguageModel))
            raise ValueError(
                f"--task memory_caching_lm reads with a memory, which {type(model).__name__} does not have: expected "
                f"one of --arch {', '.join(known)} (or a checkpoint of one)"
            )
        # A checkpoint stores the options: with the range spelt out it is read the same whatever block it is read with.
        with open_dict(cfg):
            cfg.position_range = model.decoder.stack.position_range
        return model

    def optimizer_step(self, optimizer, model, update_num):
        super().optimizer_step(optimizer, model, update_num)
        keep_bounds_of(optimizer, model)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Opens a split. Raises FileNotFoundError or ValueError, naming the file, if it is missing or damaged."""
        folders = utils.split_paths(self.cfg.data)
        parts = find_parts(folders[(epoch - 1) % len(folders)], split, combine)
        stream = TokenStream(parts, num_symbols=len(self.dictionary), pad=self.dictionary.pad())
        # fairseq's trainer is the only caller that can select data: by this a training set is known from
        # the same split being validated or scored, to which --update-freq means nothing.
        self.datasets[split] = StreamDataset(stream, split=split, training="data_selector" in kwargs)
        logger.info("%s: %d tokens in %s", split, len(stream), ", ".join(parts))

    def get_batch_iterator(
        self,
        dataset: StreamDataset,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        skip_remainder_batch: bool = False,
        **unused,
    ) -> MemoryBatchIterator:
        """An iterator over the blocks of this process. fairseq's other arguments sort, filter and shuffle samples,
        which a stream has none of.

        Raises:
            ValueError: if the rows do not fit ``max_tokens``, or are more than there are tokens.
        """
        block = self.cfg.tokens_per_sample
        rows = max_sentences or max_tokens // block
        if max_tokens is not None and not 1 <= rows * block <= max_tokens:
            raise ValueError(
                f"a batch of {max(rows, 1)} rows x {block} tokens (--batch-size x --tokens-per-sample) exceeds "
                f"--max-tokens {max_tokens}: lower one or raise the other"
            )
        lanes = 1
        if dataset.training:
            lanes = self.cfg.update_freq[min(epoch, len(self.cfg.update_freq)) - 1]
        batches = MemoryBatchIterator(
            self._blocks(dataset, rows, block, lanes, shard_id, num_shards),
            epoch=epoch,
            num_workers=num_workers,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
        )
        if dataset.training:
            self._training = batches
        return batches

    def get_checkpoint_dict(self) -> Dict[str, Dict[str, Any]]:
        """What fairseq puts into a checkpoint for the task."""
        return {type(self).__name__: {"memory": self.saved_memory, "patience": patience_state()}}

    def set_checkpoint_dict(self, state: Dict[str, Any]) -> None:
        """Continues where a checkpoint was written, with its memory, or notes why not; the iterator stands there already.

        Args:
            state: what :meth:`get_checkpoint_dict` gave, and the checkpoint's ``folder``.
        """
        load_patience_state(state.get("patience"))
        batches, name = self._training, state.get("memory")
        if name is None or not batches.iterations_in_epoch:
            return
        blocks = batches.dataset
        try:
            batches.load_memory_state(
                read_memory(Path(state["folder"]), name, process=blocks.shard_id, processes=blocks.num_shards)
            )
        except ValueError as error:
            batches.memories.lost = str(error)

    def eval_lm_dataloader(
        self,
        dataset: StreamDataset,
        max_tokens: Optional[int] = 36000,
        batch_size: Optional[int] = None,
        max_positions=None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ):
        """Batches for ``fairseq-eval-lm``: one row unless ``--batch-size`` says otherwise.

        Scores do not depend on the block, so ``--max-tokens`` shortens it where fairseq would lower the batch.
        """
        if context_window > 0:
            raise ValueError(
                "--context-window gives each sample some context again; here every token is scored with the whole "
                "memory before it: leave the option out"
            )
        if torch.distributed.is_initialized():
            # fairseq starts a process for each GPU it finds, and adds nothing up: each scores all, the first one prints.
            num_shards, shard_id = 1, 0
        rows = batch_size or 1
        block = min(self.cfg.tokens_per_sample, max(1, max_tokens // rows))
        batches = MemoryBatchIterator(
            self._blocks(dataset, rows, block, 1, shard_id, num_shards),
            epoch=1,
            num_workers=num_workers,
            buffer_size=data_buffer_size,
            skip_remainder_batch=False,
        ).next_epoch_itr(shuffle=False)

        def report(tally: Tally) -> None:
            if self.manifest and not tally.averaged:
                for line in score_lines(self.manifest, dataset.split, tokens=tally.tokens, bits=tally.bits):
                    logger.info("%s: %s", dataset.split, line)

        return TalliedBatches(batches, Tally(self.dictionary.pad()), report)

    def _blocks(self, dataset, rows, block, lanes, shard_id, num_shards) -> BlockDataset:
        return BlockDataset(
            dataset.stream,
            rows=rows,
            block=block,
            lanes=lanes,
            shard_id=shard_id,
            num_shards=num_shards,
            eos=self.dictionary.eos(),
        )

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary


def check_dictionary(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError unless the folder has the dictionary that its data was made with."""
    path = folder / "dict.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"no dict.txt in {folder}: expected a data-bin made by data_prep/text.py or fairseq-preprocess"
        )
    manifest = read_manifest(folder)
    if manifest and hashlib.sha256(path.read_bytes()).hexdigest() != manifest.dictionary_sha256:
        raise ValueError(f"{path}: dict.txt is not the one the data beside it was made with; restore it or prepare again")
