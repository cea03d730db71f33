"""How attention over a block is cut into pieces that are computed one after the other.

Size legend: B rows, K heads, T queries of the block, S candidates.

All scores of a block at once, [B, K, T, S], would leave every cache and make memory grow with the longest row. A piece is a
few rows and a few queries with the candidates that they can see: small enough to stay in the cache of a CPU, large
enough to keep its cores busy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A piece has a multiple of that many queries, whatever the candidates.
FEWEST_QUERIES = 64
# Floats in a cache line of a CPU. Where the rows of a matrix do not begin with one, products take up to three times as long.
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


def pieces(
    rows: int, seen: Callable[[int, int], int], *, block: int, heads: int, scores: int, queries: int
) -> Iterator[Tile]:
    """Pieces that together are every query of every row.

    Args:
        rows: B.
        seen: how many slots of the memory, the last ones, the queries of a row (first argument) from one of them on (second
            argument) can see; never more from a later one on.
        block: T.
        heads: K.
        scores: about the most scores (floats) of a piece.
        queries: the most queries of a piece.
    """
    queries = min(block, queries)
    start = 0
    while start < rows:
        stop, memory = start + 1, seen(start, 0)
        while stop < rows:
            longest = max(memory, seen(stop, 0))
            if (stop + 1 - start) * heads * queries * (longest + block) > scores:
                break
            stop, memory = stop + 1, longest
        fitting = scores // ((stop - start) * heads * (memory + block))
        step = min(queries, max(FEWEST_QUERIES, fitting // FEWEST_QUERIES * FEWEST_QUERIES))
        for first in range(0, block, step):
            memory = max(seen(row, first) for row in range(start, stop))
            yield Tile(slice(start, stop), first, min(first + step, block), memory)
        start = stop


class Workspace:
    """GrowableBuffer for the scores of one piece at a time, by name, used again from piece to piece: what is taken overwrites what was
    taken by that name before.

    Fresh memory costs a CPU more than the arithmetic done on it.
    """

    def __init__(self, like: Tensor):
        self.like = like
        self.rooms: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        room = self.rooms.get(name)
        if room is None or room.numel() < size or room.dtype != dtype:
            room = self.rooms[name] = self.like.new_empty(size, dtype=dtype)
        return room[:size].view(shape)
