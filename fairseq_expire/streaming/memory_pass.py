"""The memories of one pass over a stream: one for each model and micro-batch.

fairseq's tools only ever call ``model(**sample["net_input"])``, so each batch carries a handle to its memory there.
"""

import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fairseq_expire.modules import LanguageModel, Memory
from fairseq_expire.streaming.answers import AnswerTally
from fairseq_expire.streaming.blocks import BlockDataset

logger = logging.getLogger(__name__)


class _ReadBlock(NamedTuple):
    """The last block that was read of a micro-batch's rows.

    Args:
        start: place of its first token in the rows, None if it was read before a restart.
        end: place after its last token.
        before, after: the memory before it, if any, and after it.
    """

    start: int | None
    end: int
    before: Memory | None
    after: Memory


class MemoryPass:
    """The memories of one pass over a stream, for each model and micro-batch.

    A pass that starts in the middle of an epoch continues with saved memories (:meth:`load_state_dict`), or reads the
    text before its first block again, as far back as the model can remember.

    Args:
        blocks: the blocks that are read.
        begin: the number of the batch that the pass starts with.
    """

    def __init__(self, blocks: BlockDataset, *, begin: int):
        self._blocks = blocks
        self._last: WeakKeyDictionary[nn.Module, dict[int, _ReadBlock]] = WeakKeyDictionary()
        self._saved: dict[int, _ReadBlock] = {}
        self._answers = AnswerTally()
        # The reason why the memory at the start has to be made by reading the text again; None if it has not.
        self.reread_reason: str | None = None
        if begin or not blocks.whole_epoch:
            self.reread_reason = "none was saved with the checkpoint"

    def last_block(self, model: LanguageModel, micro_batch: int, start: int) -> _ReadBlock | None:
        """Returns the last block that a model read before token ``start`` of the rows; None if it has read none."""
        last = self._last.setdefault(model, {})
        if micro_batch not in last and micro_batch in self._saved:
            saved = self._saved[micro_batch]
            parameter = next(model.parameters())
            # Under autocast a memory may be of either type, and keeps it.
            dtype = None if torch.is_autocast_enabled(parameter.device.type) else parameter.dtype
            last[micro_batch] = saved._replace(after=saved.after.to(device=parameter.device, dtype=dtype))
        elif micro_batch not in last and self.reread_reason is not None:
            memory = self._reread(model, micro_batch, start, warn=not last)
            last[micro_batch] = _ReadBlock(None, start, None, memory)
        return last.get(micro_batch)

    def set_last_block(self, model: LanguageModel, micro_batch: int, block: _ReadBlock) -> None:
        """Notes that a model has read a block."""
        self._last.setdefault(model, {})[micro_batch] = block

    def is_start(self, micro_batch: int, start: int) -> bool:
        """Returns True if no text stands before token ``start`` of the rows."""
        return self._blocks.num_tokens_before(micro_batch, start) == 0

    def empty_memory(self, model: LanguageModel, micro_batch: int, end: int, *, back: int = 0) -> Memory:
        """Returns the memory of a model that skipped what stands before a place of each row.

        Args:
            model: the model.
            micro_batch: the rows.
            end, back: the place stands ``back`` tokens before token ``end`` of each row.
        """
        start, symbol = max(0, end - back), model.config.document_start
        tokens_read: int | list[int] = start
        if symbol is not None:
            since = self._blocks.tokens_since(symbol, micro_batch, end, back=back)
            tokens_read = [start if count is None else count for count in since]
        return model.stack.empty_memory(self._blocks.rows, tokens_read=tokens_read)

    def skip(self, model: LanguageModel, micro_batch: int, block: _ReadBlock, start: int) -> Memory:
        """Returns the memory after a block that was read, and after the text from there to token ``start``."""
        count = start - block.end
        if not count:
            return block.after
        symbol = model.config.document_start
        if symbol is None:
            return block.after.advance(count)
        inputs = self._blocks.inputs_before(micro_batch, start, count)
        return block.after.skip(inputs.eq(symbol).to(model.stack.position.device))

    @torch.no_grad()
    def _reread(self, model: LanguageModel, micro_batch: int, end: int, *, warn: bool) -> Memory:
        """Makes the memory of the text before token ``end`` with the current weights."""
        blocks, max_age = self._blocks, model.stack.max_age
        if max_age is None:
            # Without a limit, as far back as any row of an epoch goes.
            max_age = max(end, blocks.longest_row_of_epoch)
        count = min(blocks.num_tokens_before(micro_batch, end), math.ceil(max_age / blocks.block) * blocks.block)
        if warn:
            logger.warning(
                "the memory is made again by reading the last %d tokens of each row: %s", count, self.reread_reason
            )
        device = model.stack.position.device
        memory = self.empty_memory(model, micro_batch, end, back=count)
        # The next update draws the same random numbers as without this.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for tokens in blocks.inputs_before(micro_batch, end, count).split(blocks.block, dim=1):
                memory = model.read(tokens.to(device), memory).memory
        # The cache holds casts of weights that have no gradient.
        torch.clear_autocast_cache()
        return memory

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Returns for each micro-batch its memory, and the end of the text that it is of.

        Only training saves them, and training has one model.
        """
        blocks = {**self._saved, **next(iter(self._last.values()), {})}
        return {
            micro_batch: {"end": block.end, "memory": block.after.state_dict()} for micro_batch, block in blocks.items()
        }

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Continues with the memories of :meth:`state_dict`, whichever model reads."""
        self._saved = {
            micro_batch: _ReadBlock(None, saved["end"], None, Memory.from_state_dict(saved["memory"]))
            for micro_batch, saved in state.items()
        }
        self.reread_reason = None

    def attach(self, batches: Iterator[dict]) -> Iterator[dict]:
        """Yields the batches of the pass, each with a handle to its memory in ``net_input``, and with the tally."""
        for batch in batches:
            handle = MemoryHandle(self, batch["micro_batch"], batch["offset"], batch["net_input"]["src_tokens"].size(1))
            yield {**batch, "net_input": {**batch["net_input"], "memory": handle}, "tally": self._answers}


class MemoryHandle:
    """The place of one block in a pass, through which a model gets the memory before it and stores the one after it.

    A block that is run twice (after an overflow, to look for a NaN) starts both times from the same memory. The memory
    that a run stores is used by the next block only.

    Args:
        memories: the memories of the pass.
        micro_batch: the micro-batch that the block belongs to.
        start: number of tokens before it in its rows.
        block: number of tokens of a row in it.
    """

    def __init__(self, memories: MemoryPass, micro_batch: int, start: int, block: int):
        self._memories = memories
        self._micro_batch = micro_batch
        self._start = start
        self._end = start + block

    def load(self, model: LanguageModel) -> Memory | None:
        """Returns the memory to read this block with; None at the start of the stream."""
        if self._memories.is_start(self._micro_batch, self._start):
            return None
        last = self._memories.last_block(model, self._micro_batch, self._start)
        if last is None:
            logger.warning("reading on from token %d of each row with an empty memory", self._start)
            return self._memories.empty_memory(model, self._micro_batch, self._start)
        if last.start == self._start:
            return last.before
        # Memories also age by text that was skipped (a batch too large for the device).
        return self._memories.skip(model, self._micro_batch, last, self._start)

    def store(self, model: LanguageModel, before: Memory | None, after: Memory) -> None:
        """Stores the memory after this block; ``before`` is what :meth:`load` returned."""
        self._memories.set_last_block(model, self._micro_batch, _ReadBlock(self._start, self._end, before, after))
