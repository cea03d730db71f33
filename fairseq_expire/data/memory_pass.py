"""Where the memory lives while a stream is read: one pass, one memory for each model and each group of rows.

fairseq's tools only ever call ``model(**sample["net_input"])``, so a batch carries a handle to its memory there.
"""

import logging
import math
import zlib
from typing import Any, Dict, Iterator, NamedTuple, Optional
from weakref import WeakKeyDictionary

import torch
from fairseq_expire import with_fairseq  # noqa: F401
from fairseq.data.iterators import CountingIterator, EpochBatchIterator
from torch import nn

from fairseq_expire.modules import Memory

from .stream import BlockDataset

logger = logging.getLogger(__name__)


class _Held(NamedTuple):
    """The memory before and after the block that reaches from ``start`` to ``end`` in its rows. Where the pass did not read
    that block itself, there is no start and nothing before."""

    start: Optional[int]
    end: int
    before: Optional[Memory]
    after: Memory


class MemoryPass:
    """The memories of one pass over a stream: for each model, that of each lane.

    A pass that begins in the middle continues with memories that were saved (:meth:`load_state_dict`), or reads what they
    reach back to once more.

    Args:
        blocks: what is read.
        begin: the batch that the pass begins with.
    """

    def __init__(self, blocks: BlockDataset, *, begin: int):
        self._blocks = blocks
        self._held: "WeakKeyDictionary[nn.Module, Dict[int, _Held]]" = WeakKeyDictionary()
        self._saved: Dict[int, _Held] = {}
        # Why there is no memory of what was read before the pass began, if so.
        self.lost: Optional[str] = "none was saved with the checkpoint" if begin else None

    def held(self, model: nn.Module, lane: int, start: int) -> Optional[_Held]:
        """What ``model`` remembers of the rows of ``lane``, of which it is to read on from token ``start``."""
        lanes = self._held.setdefault(model, {})
        if lane not in lanes and lane in self._saved:
            parameter = next(model.parameters())
            # Under autocast states may have either type, and keep it.
            dtype = None if torch.is_autocast_enabled(parameter.device.type) else parameter.dtype
            held = self._saved[lane]
            lanes[lane] = held._replace(after=held.after.to(device=parameter.device, dtype=dtype))
        elif lane not in lanes and self.lost is not None:
            lanes[lane] = _Held(None, start, None, self._read_again(model, lane, start, say=not lanes))
        return lanes.get(lane)

    def nothing(self, model: nn.Module, start: int) -> Memory:
        """What ``model`` remembers of ``start`` tokens of each row that were all left out."""
        return model.stack.empty_memory(self._blocks.rows, read=start)

    def hold(self, model: nn.Module, lane: int, held: _Held) -> None:
        self._held.setdefault(model, {})[lane] = held

    @torch.no_grad()
    def _read_again(self, model: nn.Module, lane: int, end: int, *, say: bool) -> Memory:
        """The memory of the text before ``end``, as today's weights make it of as much text as can be remembered."""
        blocks, reach = self._blocks, model.stack.reach
        last = end // blocks.block
        first = 0 if reach is None else max(0, last - math.ceil(reach / blocks.block))
        if say:
            tokens = (last - first) * blocks.block
            logger.warning("the memory is made again by reading the last %d tokens of each row: %s", tokens, self.lost)
        device = model.stack.position.device
        memory = self.nothing(model, first * blocks.block)
        # The update that this is for draws the random numbers that it would have drawn.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for step in range(first, last):
                tokens = blocks[step * blocks.lanes + lane]["net_input"]["src_tokens"]
                _, extra = model.extract_features(tokens.to(device), memory=memory)
                memory = extra["memory"]
        # It holds copies of weights that were made without gradient.
        torch.clear_autocast_cache()
        return memory

    def state_dict(self) -> Dict[int, Dict[str, Any]]:
        """For each lane the memory and where its rows were read to. Training, which is what is saved, has one model."""
        lanes = {**self._saved, **next(iter(self._held.values()), {})}
        return {lane: {"end": held.end, "memory": held.after.state_dict()} for lane, held in lanes.items()}

    def load_state_dict(self, state: Dict[int, Dict[str, Any]]) -> None:
        """Continues with these memories, whatever the model that reads."""
        self._saved = {
            lane: _Held(None, saved["end"], None, Memory.from_state_dict(saved["memory"])) for lane, saved in state.items()
        }
        self.lost = None

    def attached(self, batches: Iterator[Dict]) -> Iterator[Dict]:
        """The batches of the pass, each with the handle to its memory in ``net_input``."""
        for batch in batches:
            handle = MemoryHandle(self, batch["lane"], batch["offset"], batch["target"].size(1))
            yield {**batch, "net_input": {**batch["net_input"], "memory": handle}}


class MemoryHandle:
    """The place of one block in one pass over a stream: what the model that reads the block is given to read from.

    A block that is run twice (after an overflow, to look for a NaN) starts both times from the same memory: what the
    first run stored is only used by the block after it.

    Args:
        memories: of the pass.
        lane: which group of rows the block belongs to.
        start: how many tokens of its rows have been read before.
        block: how many tokens of a row the block has.
    """

    def __init__(self, memories: MemoryPass, lane: int, start: int, block: int):
        self._memories = memories
        self._lane = lane
        self._start = start
        self._end = start + block

    def load(self, model: nn.Module) -> Optional[Memory]:
        """The memory that ``model`` reads this block with; None at the start of the stream."""
        if self._start == 0:
            return None
        held = self._memories.held(model, self._lane, self._start)
        if held is None:
            logger.warning("reading on from token %d of each row with an empty memory", self._start)
            return self._memories.nothing(model, self._start)
        if held.start == self._start:
            return held.before
        # Text that was skipped (a batch too large for the device) still makes what is remembered older.
        return held.after if held.end == self._start else held.after.aged(self._start - held.end)

    def store(self, model: nn.Module, before: Optional[Memory], after: Memory) -> None:
        """Keeps what ``model`` remembers after this block."""
        self._memories.hold(model, self._lane, _Held(self._start, self._end, before, after))


class MemoryBatchIterator(EpochBatchIterator):
    """fairseq's iterator over a :class:`BlockDataset`, in order, with a memory of its own for each pass.

    The handles are attached here, in the main process, since data-loading workers cannot share a memory; a batch that
    does not come through a pass (fairseq's dummy batch) has none and so advances nothing.
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
        # Of the pass that was begun last.
        self.memories: Optional[MemoryPass] = None

    def _get_iterator_for_epoch(self, epoch, shuffle, fix_batches_to_gpus=False, offset=0):
        batches = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, offset)
        if batches is None:
            return None
        self.memories = MemoryPass(self.dataset, begin=offset)
        return CountingIterator(self.memories.attached(batches), start=batches.n, total=len(batches))

    def memory_state(self) -> Dict[str, Any]:
        """What is remembered in the middle of an epoch, and of what: plain types and tensors, for a memory file."""
        return {"layout": self._layout(), "lanes": self.memories.state_dict()}

    def load_memory_state(self, state: Dict[str, Any]) -> None:
        """Continues with what :meth:`memory_state` gave; to be called after ``load_state_dict``.

        Raises:
            ValueError: if it was another text, or another part of it, in other rows.
        """
        layout = self._layout()
        different = [
            f"{name} {state['layout'].get(name)} where this run has {value}"
            for name, value in layout.items()
            if state["layout"].get(name) != value
        ]
        if different:
            raise ValueError(f"the memory beside the checkpoint is of another layout: {', '.join(different)}")
        self.memories.load_state_dict(state["lanes"])

    def _layout(self) -> Dict[str, int]:
        """What has to be the same for a memory to be of use."""
        blocks, read = self.dataset, self.iterations_in_epoch
        return {
            "rows": blocks.rows,
            "groups of rows": blocks.lanes,
            "process": blocks.shard_id,
            "processes": blocks.num_shards,
            "tokens in a block": blocks.block,
            "tokens in the split": len(blocks.stream),
            "batches read": read,
            "checksum of the text": zlib.crc32(blocks[read - 1]["target"].numpy().tobytes()),
        }
