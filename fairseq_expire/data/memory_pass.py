"""Where the memory lives while a stream is read: one pass, one memory for each model and each group of rows.

fairseq's tools only ever call ``model(**sample["net_input"])``, so a batch carries a handle to its memory there.
"""

import logging
from typing import Dict, Iterator, NamedTuple, Optional
from weakref import WeakKeyDictionary

from fairseq.data.iterators import CountingIterator, EpochBatchIterator
from torch import nn

from fairseq_expire.modules import Memory

logger = logging.getLogger(__name__)


class _Held(NamedTuple):
    """The memory before and after the block that reaches from ``start`` to ``end`` in its rows."""

    start: int
    end: int
    before: Optional[Memory]
    after: Memory


class MemoryHandle:
    """The place of one block in one pass over a stream: what the model that reads the block is given to read from.

    A block that is run twice (after an overflow, to look for a NaN) starts both times from the same memory: what the
    first run stored is only used by the block after it.

    Args:
        lanes: the memories of the pass for each model, by lane.
        lane: which group of rows the block belongs to.
        start: how many tokens of its rows have been read before.
        block: how many tokens of a row the block has.
    """

    def __init__(self, lanes: "WeakKeyDictionary[nn.Module, Dict[int, _Held]]", lane: int, start: int, block: int):
        self._lanes = lanes
        self._lane = lane
        self._start = start
        self._end = start + block

    def load(self, model: nn.Module) -> Optional[Memory]:
        """The memory that ``model`` reads this block with; None at the start of the stream."""
        if self._start == 0:
            return None
        held = self._lanes.get(model, {}).get(self._lane)
        if held is None:
            logger.warning("reading on from token %d of each row with an empty memory", self._start)
            return None
        if held.start == self._start:
            return held.before
        # Text that was skipped (a batch too large for the device) still makes what is remembered older.
        return held.after if held.end == self._start else held.after.aged(self._start - held.end)

    def store(self, model: nn.Module, before: Optional[Memory], after: Memory) -> None:
        """Keeps what ``model`` remembers after this block."""
        self._lanes.setdefault(model, {})[self._lane] = _Held(self._start, self._end, before, after)


def _with_handles(batches: Iterator[Dict]) -> Iterator[Dict]:
    """The batches of one pass, each with the handle to its memory in ``net_input``."""
    memories: "WeakKeyDictionary[nn.Module, Dict[int, _Held]]" = WeakKeyDictionary()
    for batch in batches:
        handle = MemoryHandle(memories, batch["lane"], batch["offset"], batch["target"].size(1))
        yield {**batch, "net_input": {**batch["net_input"], "memory": handle}}


class MemoryBatchIterator(EpochBatchIterator):
    """fairseq's iterator over a :class:`BlockDataset`, in order, with a memory of its own for each pass.

    The handles are attached here, in the main process, since data-loading workers cannot share a memory; a batch that
    does not come through a pass (fairseq's dummy batch) has none and so advances nothing.
    """

    def __init__(self, dataset, *, epoch: int, num_workers: int, buffer_size: int, skip_remainder_batch: bool):
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

    def _get_iterator_for_epoch(self, epoch, shuffle, fix_batches_to_gpus=False, offset=0):
        batches = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, offset)
        if batches is None:
            return None
        return CountingIterator(_with_handles(batches), start=batches.n, total=len(batches))
