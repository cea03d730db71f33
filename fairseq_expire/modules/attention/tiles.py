"""Tiles: the parts of a block's attention that are computed one after the other.

Size legend: B rows, K heads, T queries of the block, S keys.

The scores of a whole block, [B, K, T, S], exceed every cache, and grow with the longest row. A tile is a few rows and a
few queries with the memories that these can see: small enough for the cache of a CPU, large enough to keep its cores
busy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The number of queries of a tile is a multiple of this, however many memories there are.
MIN_QUERIES = 64
# Floats in a cache line of a CPU. Products of matrices whose rows do not begin with one take up to three times as long.
CACHE_LINE = 16


def aligned(count: int) -> int:
    """The next number of floats that fills whole cache lines."""
    return -(-count // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True)
class Tile:
    """Queries ``first`` ... ``last - 1`` of the rows ``rows``, and the last ``memory`` slots of the memory."""

    rows: slice
    first: int
    last: int
    memory: int


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
    start = 0
    while start < rows:
        stop, memory = start + 1, visible(start, 0)
        while stop < rows:
            largest = max(memory, visible(stop, 0))
            if (stop + 1 - start) * heads * max_queries * (largest + block) > max_scores:
                break
            stop, memory = stop + 1, largest
        fitting = max_scores // ((stop - start) * heads * (memory + block))
        step = min(max_queries, max(MIN_QUERIES, fitting // MIN_QUERIES * MIN_QUERIES))
        for first in range(0, block, step):
            memory = max(visible(row, first) for row in range(start, stop))
            yield Tile(slice(start, stop), first, min(first + step, block), memory)
        start = stop


class Workspace:
    """Named buffers that all tiles share: what is taken overwrites what was taken by the same name before.

    Fresh memory costs a CPU more than the arithmetic done on it.

    Args:
        like: a tensor on the device of the buffers.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this shape and type."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = self.buffers[name] = self.like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)
