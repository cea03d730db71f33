"""Where the memory lives while a stream is read: one pass, one memory for each model and each group of rows.

fairseq's tools only ever call ``model(**sample["net_input"])``, so a batch carries a handle to its memory there.
"""

import logging
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.iterators import CountingIterator, EpochBatchIterator
from torch import nn

from fairseq_expire.modules import Memory
from fairseq_expire.streaming.stream import BlockDataset, TokenStream

logger = logging.getLogger(__name__)

CHECKSUM = "checksum of the text"
# So many places of a text, and tokens of each, tell it from another.
SAMPLES, SAMPLE = 64, 256


class _Held(NamedTuple):
    """The memory before and after the block that reaches from ``start`` to ``end`` in its rows. Where the pass did not read
    that block itself, there is no start and nothing before."""

    start: int | None
    end: int
    before: Memory | None
    after: Memory


class MemoryPass:
    """The memories of one pass over a stream: for each model, that of each lane.

    A pass that begins in the middle of an epoch continues with memories that were saved (:meth:`load_state_dict`), or reads
    what they reach back to once more.

    Args:
        blocks: what is read.
        begin: the batch of it that the pass begins with.
    """

    def __init__(self, blocks: BlockDataset, *, begin: int):
        self._blocks = blocks
        self._held: WeakKeyDictionary[nn.Module, dict[int, _Held]] = WeakKeyDictionary()
        self._saved: dict[int, _Held] = {}
        # Why there is no memory of what was read before the pass began, if so.
        self.lost: str | None = "none was saved with the checkpoint" if begin or not blocks.whole else None

    def held(self, model: nn.Module, lane: int, start: int) -> _Held | None:
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

    def starts_cold(self, lane: int, start: int) -> bool:
        """Whether nothing stands before token ``start`` of the rows of ``lane``."""
        return self._blocks.before(lane, start) == 0

    def nothing(self, model: nn.Module, start: int) -> Memory:
        """What ``model`` remembers of ``start`` tokens of each row that were all left out."""
        return model.stack.empty_memory(self._blocks.rows, tokens_read=start)

    def hold(self, model: nn.Module, lane: int, held: _Held) -> None:
        self._held.setdefault(model, {})[lane] = held

    @torch.no_grad()
    def _read_again(self, model: nn.Module, lane: int, end: int, *, say: bool) -> Memory:
        """The memory of the text before ``end``, as today's weights make it of as much text as can be remembered."""
        blocks, reach = self._blocks, model.stack.max_age
        if reach is None:
            # As far as any row of an epoch goes.
            reach = max(end, blocks.longest_of_corpus)
        count = min(blocks.before(lane, end), math.ceil(reach / blocks.block) * blocks.block)
        if say:
            logger.warning("the memory is made again by reading the last %d tokens of each row: %s", count, self.lost)
        device = model.stack.position.device
        memory = self.nothing(model, max(0, end - count))
        # The update that this is for draws the random numbers that it would have drawn.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for tokens in blocks.inputs_before(lane, end, count).split(blocks.block, dim=1):
                memory = model.read(tokens.to(device), memory).memory
        # It holds copies of weights that were made without gradient.
        torch.clear_autocast_cache()
        return memory

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """For each lane the memory and where its rows were read to. Training, which is what is saved, has one model."""
        lanes = {**self._saved, **next(iter(self._held.values()), {})}
        return {lane: {"end": held.end, "memory": held.after.state_dict()} for lane, held in lanes.items()}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Continues with these memories, whatever the model that reads."""
        self._saved = {
            lane: _Held(None, saved["end"], None, Memory.from_state_dict(saved["memory"]))
            for lane, saved in state.items()
        }
        self.lost = None

    def attached(self, batches: Iterator[dict]) -> Iterator[dict]:
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

    def load(self, model: nn.Module) -> Memory | None:
        """The memory that ``model`` reads this block with; None at the start of the stream."""
        if self._memories.starts_cold(self._lane, self._start):
            return None
        held = self._memories.held(model, self._lane, self._start)
        if held is None:
            logger.warning("reading on from token %d of each row with an empty memory", self._start)
            return self._memories.nothing(model, self._start)
        if held.start == self._start:
            return held.before
        # Text that was skipped (a batch too large for the device) still makes what is remembered older.
        return held.after if held.end == self._start else held.after.advance(self._start - held.end)

    def store(self, model: nn.Module, before: Memory | None, after: Memory) -> None:
        """Keeps what ``model`` remembers after this block."""
        self._memories.hold(model, self._lane, _Held(self._start, self._end, before, after))


class MemoryBatchIterator(EpochBatchIterator):
    """fairseq's iterator over a :class:`BlockDataset`, in order, with a memory of its own for each pass.

    The handles are attached here, in the main process, since data-loading workers cannot share a memory; a batch that
    does not come through a pass (fairseq's dummy batch) has none and so advances nothing.

    An epoch that was begun with other rows (another ``--batch-size``, ``--tokens-per-sample``, ``--update-freq``, or other
    processes) goes on with the text that those had left, cut into the rows of this run.
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
        self._whole = dataset
        # How many batches of the epoch count as read before the first one of ``dataset``.
        self._before = 0
        # Of the pass that was begun last.
        self.memories: MemoryPass | None = None
        # What differs between the rows that were read before the epoch was loaded and these, if anything.
        self.difference = ""

    def _get_iterator_for_epoch(self, epoch, shuffle, fix_batches_to_gpus=False, offset=0):
        if not offset:
            self._read(self._whole, before=0)
        begin = offset - self._before
        batches = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, begin)
        if batches is None:
            raise ValueError(
                f"the checkpoint was saved after {offset} batches of an epoch, and this run has {len(self.dataset)} in all: an "
                "earlier version wrote it, which needs the --batch-size, --tokens-per-sample, --update-freq and number of "
                "processes that it was saved with; give these until the epoch ends, or --reset-dataloader to begin anew"
            )
        self.memories = MemoryPass(self.dataset, begin=begin)
        start, total = batches.n + self._before, len(batches) + self._before
        return CountingIterator(self.memories.attached(batches), start=start, total=total)

    def _read(self, blocks: BlockDataset, *, before: int) -> None:
        """Reads these blocks from now on."""
        self.dataset, self._before = blocks, before
        self._frozen_batches = tuple([index] for index in range(len(blocks)))

    def state_dict(self) -> dict[str, Any]:
        """As fairseq's, and in the middle of an epoch also what of the text it still has to read: plain types."""
        state = super().state_dict()
        if state["iterations_in_epoch"]:
            state["text"] = {
                **self._rows(),
                "tokens": len(self.dataset.stream),
                "checksum": checksum(self.dataset.stream),
                "intervals": None if self.dataset.whole else [list(interval) for interval in self.dataset.intervals],
                "batches before": self._before,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken, in other rows if need be.

        Raises:
            ValueError: if it was another text, or an earlier version counted the batches of other rows.
        """
        self._read(self._whole, before=0)
        self.difference = ""
        text = state.get("text")
        if text is None:
            super().load_state_dict(state)
            return
        whole, epoch, before = self._whole, state["epoch"], text["batches before"]
        stream = whole.stream
        if (text["tokens"], text["checksum"]) != (len(stream), checksum(stream)):
            raise ValueError(
                f"the checkpoint stands in the middle of epoch {epoch} over another text ({text['tokens']} tokens) than "
                f"{stream.prefixes[0]} ({len(stream)} tokens): give the data that it was trained on, or --reset-dataloader to "
                "begin with epoch 1 of this one"
            )
        self.difference = ", ".join(
            f"{name} {text[name]} where this run has {value}"
            for name, value in self._rows().items()
            if text[name] != value
        )
        if not self.difference:
            if text["intervals"] is not None:
                self._read(whole.cut(text["intervals"]), before=before)
            super().load_state_dict(state)
            return
        begun = BlockDataset(
            stream,
            rows=text["rows"],
            block=text["tokens in a block"],
            lanes=text["groups of rows"],
            # What is left is the same for all.
            shard_id=0,
            num_shards=text["processes"],
            eos=whole.eos,
            intervals=text["intervals"],
        )
        rest = whole.cut(begun.unread(state["iterations_in_epoch"] - before))
        # So many steps of these rows would have read as much; in the middle of an epoch at least one.
        steps = max(1, whole.steps * (len(stream) - rest.tokens) // len(stream))
        self._read(rest, before=steps * whole.lanes)
        super().load_state_dict({**state, "iterations_in_epoch": self._before})
        self.memories.lost = f"the memory beside the checkpoint is of another layout: {self.difference}"
        logger.info(
            "epoch %d goes on in other rows (%s): %d of its %d tokens are left",
            epoch,
            self.difference,
            rest.tokens,
            len(stream),
        )

    @property
    def nothing_left(self) -> bool:
        """Whether the epoch that was loaded has no update left, as when ``--skip-remainder-batch`` leaves out its last block."""
        left = self._next_epoch_itr
        return left is not None and left.total - left.n < self.dataset.lanes

    def memory_state(self) -> dict[str, Any]:
        """What is remembered in the middle of an epoch, and of what: plain types and tensors, for a memory file."""
        return {"layout": self._layout(), "lanes": self.memories.state_dict()}

    def load_memory_state(self, state: dict[str, Any]) -> None:
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
        # Other rows have read other text last: that says nothing more.
        if len(different) > 1 and different[-1].startswith(CHECKSUM):
            del different[-1]
        if different:
            raise ValueError(f"the memory beside the checkpoint is of another layout: {', '.join(different)}")
        self.memories.load_state_dict(state["lanes"])

    def _rows(self) -> dict[str, int]:
        """How all processes together read the text."""
        blocks = self.dataset
        return {
            "rows": blocks.rows,
            "groups of rows": blocks.lanes,
            "processes": blocks.num_shards,
            "tokens in a block": blocks.block,
        }

    def _layout(self) -> dict[str, int]:
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
            CHECKSUM: zlib.crc32(blocks[read - self._before - 1]["target"].numpy().tobytes()),
        }


def checksum(stream: TokenStream) -> int:
    """CRC-32 of some of the text, spread over all of it, by which it is told from another of the same length."""
    last = max(0, len(stream) - SAMPLE)
    crc = 0
    for number in range(SAMPLES):
        start = last * number // (SAMPLES - 1)
        crc = zlib.crc32(stream.read(start, min(start + SAMPLE, len(stream))).tobytes(), crc)
    return crc
