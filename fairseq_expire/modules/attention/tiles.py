"""Tiles: the parts of a block's attention that are computed one after the other.

Size legend: B rows, K heads, T queries of the block, S keys.

The scores of a whole block, [B, K, T, S], exceed every cache, and grow with the longest row. A tile is a few rows and a
few queries with the memories that these can see: small enough for the cache of a CPU, large enough to keep its cores
busy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The number of queries of a tile is a multiple of this, however many memories there are.
MIN_QUERIES = 64
# Floats in a cache line of a CPU. Products of matrices whose rows do not begin with one take up to three times as long.
CACHE_LINE = 16


def aligned(count: int) -> int:
    """Rounds a number of floats up to whole cache lines."""
    return -(-count // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Tile:
    """Queries ``start`` ... ``stop - 1`` of the rows ``rows``, and the last ``memory`` slots of the memory."""

    rows: slice
    start: int
    stop: int
    memory: int


class MemoryRange(NamedTuple):
    """Consecutive memories, counted back from the block.

    Args:
        from_first: number of memories from the first of them to the block.
        after_last: number of memories between the last of them and the block.
    """

    from_first: int
    after_last: int


def tiles(
    rows: int, visible: Callable[[int, int], int], *, block: int, heads: int, max_scores: int, max_queries: int
) -> Iterator[Tile]:
    """Splits the queries of all rows into tiles.

    Args:
        rows: B.
        visible: how many memory slots, the last ones, the queries of a row (first argument) from one of them on (second
            argument) can see; never more from a later one on.
        block: T.
        heads: K.
        max_scores: about the most scores (floats) of a tile.
        max_queries: the most queries of a tile.
    """
    max_queries = min(block, max_queries)
    first_row = 0
    while first_row < rows:
        end_row, memory = first_row + 1, visible(first_row, 0)
        while end_row < rows:
            largest = max(memory, visible(end_row, 0))
            if (end_row + 1 - first_row) * heads * max_queries * (largest + block) > max_scores:
                break
            end_row, memory = end_row + 1, largest
        fitting = max_scores // ((end_row - first_row) * heads * (memory + block))
        step = min(max_queries, max(MIN_QUERIES, fitting // MIN_QUERIES * MIN_QUERIES))
        for start in range(0, block, step):
            memory = max(visible(row, start) for row in range(first_row, end_row))
            yield Tile(slice(first_row, end_row), start, min(start + step, block), memory)
        first_row = end_row


class Workspace:
    """Named buffers that all tiles share: a tensor overwrites the one taken by the same name before.

    Fresh memory costs a CPU more than the arithmetic done on it.

    Args:
        like: a tensor on the device of the buffers.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor of this shape and type."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = self.buffers[name] = self.like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)
