"""Order of the memories of a block: those that queries can skip stand in front.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S keys, M of them memories, d width of a head.

Attention does not depend on where a memory stands, since its age says how far back it is. So each row's are sorted:

1. Fully visible ones without a position. All queries see them with a mask of 1, so they need neither a bias nor the
   gradient of their span, and a kernel of their own takes them.
2. Expired ones.
3. All others, by the first query that does not see them any more; of those with the same one the youngest come last.

Of the third group, a query sees a run of memories that ends where the block begins. The first group joins the end of
this run where it is too small for a kernel, or no kernel can take it.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairseq_expire.modules.attention.tiles import MemoryRange, Tile, aligned
from fairseq_expire.modules.visibility import Visibility

# Calling a kernel for fewer memories than this takes longer than what it saves.
MIN_FULLY_VISIBLE = 32


@dataclass(frozen=True)
class MemoryOrder:
    """Places of the memories.

    Args:
        order: [B, M] int64, the slot of the memory in each place.
        end: [B, M], by place: the first query that does not see the memory any more, so 0 for expired ones; T + 1 for
            fully visible ones at the end, -1 for those in front.
        age: [B, M], by place: steps back from the first query.
        in_front: how many fully visible memories stand in front in each row.
        split: all memories in front stand before this place, and no memory of the third group does.
    """

    order: Tensor
    end: npt.NDArray[np.int64]
    age: npt.NDArray[np.int64]
    in_front: tuple[int, ...]
    split: int

    @classmethod
    def of(cls, visibility: Visibility, position_range: int, *, with_kernel: bool) -> "MemoryOrder":
        """Sorts memories.

        Args:
            visibility: of memories, then the block; on a CPU, since its values are looked at.
            position_range: P.
            with_kernel: True if a kernel can take the fully visible ones.
        """
        block = visibility.block
        slots = visibility.age.size(1) - block
        visibility = visibility.select(slice(None), slice(slots))
        # Treat NaN as visible so that it propagates.
        end = visibility.end.masked_fill(visibility.expires_at.isnan().any(dim=1), block)
        full = visibility.fully_visible & (visibility.age > position_range)
        end.masked_fill_(full, block + 1)
        full &= with_kernel & (full.sum(dim=1, keepdim=True) >= MIN_FULLY_VISIBLE)
        others = int(((end > 0) & ~full).sum(dim=1).max())
        split = max(0, slots - aligned(others))
        if split < MIN_FULLY_VISIBLE:
            split = 0
        # There is no place for more in front.
        full &= full.cumsum(dim=1) <= split
        end, order = end.masked_fill_(full, -1).sort(dim=1, stable=True)
        in_front = tuple(full.sum(dim=1).tolist())
        return cls(order, end.numpy(), visibility.age.gather(1, order).numpy(), in_front, split)

    @property
    def slots(self) -> int:
        """M."""
        return self.order.size(1)

    def visible(self, row: int, start: int) -> int:
        """Counts the last places, in whole cache lines, that hold the memories which queries from ``start`` on see.

        Those in front, before the split, do not count.
        """
        visible = self.slots - int(np.searchsorted(self.end[row], start, side="right"))
        return min(self.slots - self.split, aligned(visible))

    def within(self, tile: Tile, steps: int) -> MemoryRange:
        """Finds the places of a tile's memories that are at most ``steps`` back from its first query."""
        age = self.age[tile.rows, self.slots - tile.memory :]
        within = np.flatnonzero((age <= steps - tile.start).any(axis=0))
        if not len(within):
            return MemoryRange(0, 0)
        return MemoryRange(tile.memory - int(within[0]), tile.memory - 1 - int(within[-1]))

    def sort_visibility(self, visibility: Visibility) -> Visibility:
        """Returns the visibility of sorted memories."""
        span = visibility.span.clone()
        span[..., : self.slots] = visibility.span.gather(2, self.order.unsqueeze(1).expand(-1, span.size(1), -1))
        hidden_from = None if visibility.hidden_from is None else self._sort_steps(visibility.hidden_from)
        return replace(visibility, span=span, age=self._sort_steps(visibility.age), hidden_from=hidden_from)

    def _sort_steps(self, steps: Tensor) -> Tensor:
        """Sorts the memories of ages or bounds [B, S]."""
        out = steps.clone()
        out[:, : self.slots] = steps.gather(1, self.order)
        return out

    def sort(self, heads: Tensor) -> Tensor:
        """Sorts the memories of keys or values [B, K, S, d]."""
        out = torch.empty_like(heads, memory_format=torch.contiguous_format)
        for row, order, into in zip(heads, self.order, out):
            into[:, self.slots :] = row[:, self.slots :]
            # Head by head, so that what is copied at once lies side by side.
            for head, into_head in zip(row, into):
                torch.index_select(head, 0, order, out=into_head[: self.slots])
        return out

    def unsort(self, heads: Tensor) -> Tensor:
        """Undoes :meth:`sort`; the result has the heads of a key side by side in the computer's memory."""
        rows, num_heads, keys, width = heads.shape
        out = heads.new_empty(rows, keys, num_heads, width).transpose(1, 2)
        for row, place, into in zip(heads, self.order.argsort(dim=1), out):
            into[:, self.slots :] = row[:, self.slots :]
            for head, into_head in zip(row, into):
                torch.index_select(head, 0, place, out=into_head[: self.slots])
        return out

    def unsort_spans(self, spans: Tensor) -> Tensor:
        """[B, H, S] by place -> [B, H, S] by slot."""
        order = self.order.unsqueeze(1).expand(-1, spans.size(1), -1)
        return spans.clone().scatter_(2, order, spans[..., : self.slots])
