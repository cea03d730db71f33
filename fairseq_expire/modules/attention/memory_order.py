"""The order in which the memories of a block are computed.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates, M of them memories, d width of a head.

Attention does not depend on where a memory stands: its age says how far back it is. So memories are put in order, heads first and
side by side as products like it best: first the *steady* ones, which every query of the block sees in full, without a
position, and which so need no bias and have no gradient of their span; then what is gone already; then the others, what is seen
longest last and of the same the youngest. What a query can still see of these is a run that ends where the block begins. There are
steady ones at its end, too, if they are few or no kernel can take them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fairseq_expire.modules.attention.tiles import Tile, aligned
from fairseq_expire.modules.visibility import Visibility

# For fewer memories than this, calling a kernel of their own takes longer than what it saves.
FEWEST_STEADY = 32


@dataclass(frozen=True)
class MemoryOrder:
    """Where memories are put.

    Args:
        order: [B, M] int64, the slot of the memory in each place.
        until: [B, M], by place: 0 for what no query sees, else how many queries of the block see the memory; more than T for steady
            ones at the end, -1 for those in front.
        age: [B, M], by place, steps back from the first query.
        steady: how many steady ones stand in front in each row.
        border: the places before this one hold nothing, of any row, but what is steady or gone, and all steady ones in front.
    """

    order: Tensor
    until: np.ndarray
    age: np.ndarray
    steady: tuple[int, ...]
    border: int

    @classmethod
    def of(cls, visibility: Visibility, position_range: int, *, in_front: bool) -> "MemoryOrder":
        """
        Args:
            visibility: of the candidates, all but the last T memories; on a CPU, since it looks at what they are.
            position_range: P.
            in_front: whether to put steady ones in front.
        """
        block = visibility.block
        memories = visibility.age.size(1) - block
        visibility = visibility.select(slice(None), slice(memories))
        # Treat NaN as visible so that it propagates.
        until = visibility.last.masked_fill(visibility.expires_at.isnan().any(dim=1), block)
        steady = visibility.fully_visible & (visibility.age > position_range)
        until.masked_fill_(steady, block + 1)
        steady &= in_front & (steady.sum(dim=1, keepdim=True) >= FEWEST_STEADY)
        others = int(((until > 0) & ~steady).sum(dim=1).max())
        border = max(0, memories - aligned(others))
        if border < FEWEST_STEADY:
            border = 0
        # In front is no place for more.
        steady &= steady.cumsum(dim=1) <= border
        until, order = until.masked_fill_(steady, -1).sort(dim=1, stable=True)
        counts = tuple(steady.sum(dim=1).tolist())
        return cls(order, until.numpy(), visibility.age.gather(1, order).numpy(), counts, border)

    @property
    def memories(self) -> int:
        return self.order.size(1)

    def seen(self, row: int, first: int) -> int:
        """How many places behind the border, the last ones, hold all that queries from ``first`` on can see of a row there, in whole
        cache lines."""
        seen = self.memories - int(np.searchsorted(self.until[row], first, side="right"))
        return min(self.memories - self.border, aligned(seen))

    def within(self, piece: Tile, steps: int) -> tuple[int, int]:
        """Of the places that a piece sees, those that hold all that is at most ``steps`` back from its first query: how many are from the
        first of them on, and how many after the last."""
        age = self.age[piece.rows, self.memories - piece.memory :]
        within = (age <= steps - piece.first).any(axis=0).nonzero()[0]
        return (piece.memory - int(within[0]), piece.memory - 1 - int(within[-1])) if len(within) else (0, 0)

    def visibility(self, visibility: Visibility) -> Visibility:
        """[B, ..., S] in order."""
        span, age = visibility.span.clone(), visibility.age.clone()
        span[..., : self.memories] = visibility.span.gather(2, self.order.unsqueeze(1).expand(-1, span.size(1), -1))
        age[:, : self.memories] = visibility.age.gather(1, self.order)
        return replace(visibility, span=span, age=age)

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

    def restored_span(self, span: Tensor) -> Tensor:
        """[B, H, S], a gradient, out of order again."""
        order = self.order.unsqueeze(1).expand(-1, span.size(1), -1)
        return span.clone().scatter_(2, order, span[..., : self.memories])
