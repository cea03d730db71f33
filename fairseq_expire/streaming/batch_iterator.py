"""fairseq's iterator over the batches of an epoch, with memories, and its state in a checkpoint."""

import logging
import zlib
from typing import Any

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.iterators import CountingIterator, EpochBatchIterator

from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import Corpus
from fairseq_expire.streaming.memory_pass import MemoryPass

logger = logging.getLogger(__name__)

CHECKSUM = "checksum of the text"
# Number of places of a text, and of tokens at each, that its checksum covers.
SAMPLES, SAMPLE = 64, 256


class MemoryBatchIterator(EpochBatchIterator):
    """fairseq's iterator over a :class:`BlockDataset`, in order, with new memories for each pass.

    Handles to the memories are attached in the main process, since data-loading workers cannot share a memory. A batch
    that does not come from a pass (fairseq's dummy batch) has no handle, and so advances no memory.

    An epoch that an earlier run began in other rows (with another ``--batch-size``, ``--tokens-per-sample``,
    ``--update-freq``, or number of processes) continues with the text that is unread, cut into the rows of this run.

    Args:
        dataset: the blocks of a whole epoch.
        epoch: the number of the first epoch, from 1.
        num_workers, buffer_size, skip_remainder_batch: as in fairseq.
    """

    def __init__(
        self, dataset: BlockDataset, *, epoch: int, num_workers: int, buffer_size: int, skip_remainder_batch: bool
    ):
        super().__init__(
            dataset=dataset,
            collate_fn=dataset.collate,
            batch_sampler=[[index] for index in range(len(dataset))],
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=buffer_size,
            disable_shuffling=True,
            skip_remainder_batch=skip_remainder_batch,
        )
        self._epoch_blocks = dataset
        # Number of batches of the epoch that count as read before the first one of ``dataset``.
        self._batches_before = 0
        # The memories of the current pass.
        self.memory_pass: MemoryPass | None = None
        # The difference between the rows of the run that began the epoch and the rows of this run; empty if none.
        self.layout_difference = ""

    def _get_iterator_for_epoch(self, epoch, shuffle, fix_batches_to_gpus=False, offset=0):
        if not offset:
            self._use(self._epoch_blocks, batches_before=0)
        begin = offset - self._batches_before
        batches = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, begin)
        if batches is None:
            raise ValueError(
                f"the checkpoint was saved after {offset} batches of an epoch, and this run has {len(self.dataset)} in "
                "all: an earlier version wrote it, which needs the --batch-size, --tokens-per-sample, --update-freq "
                "and number of processes that it was saved with; give these until the epoch ends, or "
                "--reset-dataloader to begin anew"
            )
        self.memory_pass = MemoryPass(self.dataset, begin=begin)
        start, total = batches.n + self._batches_before, len(batches) + self._batches_before
        return CountingIterator(self.memory_pass.attach(batches), start=start, total=total)

    def _use(self, blocks: BlockDataset, *, batches_before: int) -> None:
        """Iterates over these blocks from now on."""
        self.dataset, self._batches_before = blocks, batches_before
        self._frozen_batches = tuple([index] for index in range(len(blocks)))

    def state_dict(self) -> dict[str, Any]:
        """Returns fairseq's state, and in the middle of an epoch also the unread text, in plain types."""
        state = super().state_dict()
        if state["iterations_in_epoch"]:
            blocks = self.dataset
            state["text"] = {
                **self._layout(),
                "tokens": len(blocks.corpus),
                "checksum": checksum(blocks.corpus),
                "intervals": None if blocks.whole_epoch else [list(interval) for interval in blocks.intervals],
                "batches before": self._batches_before,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of :meth:`state_dict`, in other rows if need be.

        Raises:
            ValueError: if the state is of another text.
        """
        self._use(self._epoch_blocks, batches_before=0)
        self.layout_difference = ""
        text = state.get("text")
        if text is None:
            super().load_state_dict(state)
            return
        self._check_text(text, state["epoch"])
        self.layout_difference = ", ".join(
            f"{name} {text[name]} where this run has {value}"
            for name, value in self._layout().items()
            if text[name] != value
        )
        if self.layout_difference:
            self._continue_in_other_rows(state)
            return
        if text["intervals"] is not None:
            self._use(self._epoch_blocks.with_intervals(text["intervals"]), batches_before=text["batches before"])
        super().load_state_dict(state)

    def _check_text(self, text: dict[str, Any], epoch: int) -> None:
        corpus = self._epoch_blocks.corpus
        if (text["tokens"], text["checksum"]) != (len(corpus), checksum(corpus)):
            raise ValueError(
                f"the checkpoint stands in the middle of epoch {epoch} over another text ({text['tokens']} tokens) "
                f"than {corpus.name} ({len(corpus)} tokens): give the data that it was trained on, or "
                "--reset-dataloader to begin with epoch 1 of this one"
            )

    def _continue_in_other_rows(self, state: dict[str, Any]) -> None:
        """Cuts the text that the rows of an earlier run left unread into the rows of this run."""
        text, epoch_blocks = state["text"], self._epoch_blocks
        corpus = epoch_blocks.corpus
        begun = BlockDataset(
            corpus,
            rows=text["rows"],
            block=text["tokens in a block"],
            micro_batches=text["micro-batches"],
            # All processes have the same unread text.
            shard_id=0,
            num_shards=text["processes"],
            intervals=text["intervals"],
        )
        rest = epoch_blocks.with_intervals(begun.unread(state["iterations_in_epoch"] - text["batches before"]))
        # The progress in the epoch, counted in blocks of these rows; 0 would mean the start of the epoch.
        num_blocks = max(1, epoch_blocks.num_blocks * (len(corpus) - rest.tokens) // len(corpus))
        self._use(rest, batches_before=num_blocks * epoch_blocks.micro_batches)
        super().load_state_dict({**state, "iterations_in_epoch": self._batches_before})
        self.memory_pass.reread_reason = (
            f"the memory beside the checkpoint is of another layout: {self.layout_difference}"
        )
        logger.info(
            "epoch %d goes on in other rows (%s): %d of its %d tokens are left",
            state["epoch"],
            self.layout_difference,
            rest.tokens,
            len(corpus),
        )

    @property
    def has_no_update(self) -> bool:
        """True if no update remains of a loaded epoch, since ``--skip-remainder-batch`` drops its last block."""
        remaining = self._next_epoch_itr
        return remaining is not None and remaining.total - remaining.n < self.dataset.micro_batches

    def memory_state(self) -> dict[str, Any]:
        """Returns the memories in the middle of an epoch and the layout of their rows, for a memory file."""
        return {"layout": self._memory_layout(), "memories": self.memory_pass.state_dict()}

    def load_memory_state(self, state: dict[str, Any]) -> None:
        """Continues with a state of :meth:`memory_state`, after ``load_state_dict``.

        Raises:
            ValueError: if it is of another text, of another part of the text, or of other rows.
        """
        layout = self._memory_layout()
        different = [
            f"{name} {state['layout'].get(name)} where this run has {value}"
            for name, value in layout.items()
            if state["layout"].get(name) != value
        ]
        # Other rows explain another checksum.
        if len(different) > 1 and different[-1].startswith(CHECKSUM):
            del different[-1]
        if different:
            raise ValueError(f"the memory beside the checkpoint is of another layout: {', '.join(different)}")
        self.memory_pass.load_state_dict(state["memories"])

    def _layout(self) -> dict[str, int]:
        """Returns the rows of all processes together, by names for the user."""
        blocks = self.dataset
        return {
            "rows": blocks.rows,
            "micro-batches": blocks.micro_batches,
            "processes": blocks.num_shards,
            "tokens in a block": blocks.block,
        }

    def _memory_layout(self) -> dict[str, int]:
        """Returns the rows of this process, and the place in the text, that a memory belongs to."""
        blocks, read = self.dataset, self.iterations_in_epoch
        return {
            "rows": blocks.rows,
            "micro-batches": blocks.micro_batches,
            "process": blocks.shard_id,
            "processes": blocks.num_shards,
            "tokens in a block": blocks.block,
            "tokens in the split": len(blocks.corpus),
            "batches read": read,
            CHECKSUM: zlib.crc32(blocks[read - self._batches_before - 1]["net_input"]["src_tokens"].numpy().tobytes()),
        }


def checksum(corpus: Corpus) -> int:
    """Returns the CRC-32 of samples from all parts of a text; it tells texts of the same length apart."""
    last = max(0, len(corpus) - SAMPLE)
    crc = 0
    for number in range(SAMPLES):
        start = last * number // (SAMPLES - 1)
        crc = zlib.crc32(corpus.content(start, min(start + SAMPLE, len(corpus))), crc)
    return crc
