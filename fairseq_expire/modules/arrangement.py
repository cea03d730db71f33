"""The order in which the memories of a block are computed.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates, M of them memories, d width of a head.

Attention does not depend on where a memory stands: its age says how far back it is. So memories are put in order, heads first and
side by side as products like it best: first the *steady* ones, which every query of the block sees in full, without a
position, and which so need no bias and have no gradient of their span; then what is gone already; then the others, what is seen
longest last and of the same the youngest. What a query can still see of these is a run that ends where the block begins.
"""

from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from .pieces import Piece, aligned
from .soft_mask import Sight

# For fewer memories than this, calling a kernel of their own takes longer than what it saves.
FEWEST_STEADY = 32


@dataclass(frozen=True)
class Arrangement:
    """Where memories are put.

    Args:
        order: [B, M] int64, the slot of the memory in each place.
        until: [B, M], by place: 0 for what no query sees, else how many queries of the block see the memory; -1 for steady ones.
        age: [B, M], by place, steps back from the first query.
        steady: how many count as steady in each row, the first ones.
        border: the places before this one hold nothing, of any row, but what is steady or gone, and all that is steady.
    """

    order: Tensor
    until: np.ndarray
    age: np.ndarray
    steady: Tuple[int, ...]
    border: int

    @classmethod
    def of(cls, sight: Sight, block: int, position_range: Optional[int]) -> "Arrangement":
        """
        Args:
            sight: of the candidates, all but the last T memories; on a CPU, since it looks at what they are.
            block: T.
            position_range: P; None if nothing is to count as steady.
        """
        memories = sight.age.size(1) - block
        sight = sight.of(slice(None), slice(memories))
        until = sight.until(block)
        steady = torch.zeros_like(until, dtype=torch.bool)
        if position_range is not None:
            steady = sight.steady(block) & (sight.age > position_range)
            # A few are as well computed with the others.
            steady &= steady.sum(dim=1, keepdim=True) >= FEWEST_STEADY
        others = int(((until > 0) & ~steady).sum(dim=1).max())
        border = max(0, memories - aligned(others))
        # Those for which there is no place before the border are computed with the others, too.
        steady &= steady.cumsum(dim=1) <= border
        until, order = until.masked_fill_(steady, -1).sort(dim=1, stable=True)
        counts = tuple(steady.sum(dim=1).tolist())
        return cls(order, until.numpy(), sight.age.gather(1, order).numpy(), counts, border)

    @property
    def memories(self) -> int:
        return self.order.size(1)

    def seen(self, row: int, first: int) -> int:
        """How many places behind the border, the last ones, hold all that queries from ``first`` on can see of a row there, in whole
        cache lines."""
        seen = self.memories - int(np.searchsorted(self.until[row], first, side="right"))
        return min(self.memories - self.border, aligned(seen))

    def within(self, piece: Piece, steps: int) -> int:
        """How many of the places that a piece sees, the last ones, hold all that is at most ``steps`` back from its first query."""
        age = self.age[piece.rows, self.memories - piece.memory :]
        within = (age <= steps - piece.first).any(axis=0)
        return piece.memory - int(within.argmax()) if within.any() else 0

    def sight(self, sight: Sight) -> Sight:
        """[B, ..., S] in order."""
        left = sight.left.clone()
        left[..., : self.memories] = sight.left.gather(2, self.order.unsqueeze(1).expand(-1, left.size(1), -1))
        age = sight.age.clone()
        age[:, : self.memories] = sight.age.gather(1, self.order)
        return replace(sight, left=left, age=age)

    def arranged(self, heads: Tensor) -> Tensor:
        """[B, K, S, d] -> the same in order."""
        out = torch.empty_like(heads, memory_format=torch.contiguous_format)
        for row, order, into in zip(heads, self.order, out):
            into[:, self.memories :] = row[:, self.memories :]
            # Head by head, so that what is copied at once lies side by side.
            for head, into_head in zip(row, into):
                torch.index_select(head, 0, order, out=into_head[: self.memories])
        return out

    def restored(self, arranged: Tensor) -> Tensor:
        """The inverse of :meth:`arranged`, with the heads of a candidate side by side in the computer's memory."""
        rows, heads, slots, width = arranged.shape
        out = arranged.new_empty(rows, slots, heads, width).transpose(1, 2)
        for row, place, into in zip(arranged, self.order.argsort(dim=1), out):
            into[:, self.memories :] = row[:, self.memories :]
            for head, into_head in zip(row, into):
                torch.index_select(head, 0, place, out=into_head[: self.memories])
        return out

    def restored_left(self, left: Tensor) -> Tensor:
        """[B, H, S], a gradient, out of order again."""
        order = self.order.unsqueeze(1).expand(-1, left.size(1), -1)
        return left.clone().scatter_(2, order, left[..., : self.memories])
