"""Borders between the documents of a block: the queries at which a document begins, before which nothing is seen.

Size legend: B rows, T tokens of a block, S keys.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Borders:
    """The places of a block at which documents begin.

    A token that begins a document belongs to it: it is stored, and its query sees nothing.

    Args:
        starts: [B, T] bool, True where a token begins a document.
    """

    starts: Tensor

    @cached_property
    def _place(self) -> Tensor:
        """[T] int64: 0 ... T - 1."""
        return torch.arange(self.starts.size(1), device=self.starts.device)

    @cached_property
    def _next(self) -> Tensor:
        """[B, T + 1] int64: the first start at or after each query, and after the last one; T + 1 if there is none."""
        block = self.starts.size(1)
        place = self._place.masked_fill(~self.starts, block + 1)
        found = place.flip(1).cummin(dim=1).values.flip(1)
        return torch.cat([found, found.new_full((found.size(0), 1), block + 1)], dim=1)

    @cached_property
    def _latest(self) -> Tensor:
        """[B, T] int64: the last start at or before each query; -1 if there is none."""
        return self._place.masked_fill(~self.starts, -1).cummax(dim=1).values

    def next_start(self, age: Tensor) -> Tensor:
        """Returns the first query that begins a document after each key, [B, S] int64; T + 1 if none does.

        Args:
            age: [B, S] int64, steps from the block's first query back to each key.
        """
        return self._next.gather(1, (1 - age).clamp(min=0))

    def document_start(self, age: Tensor, tokens_read: int | Tensor) -> Tensor:
        """Returns the first place of the document of each key, [B, S] int64, counted from the block's first query.

        Args:
            age: [B, S] int64, steps from the block's first query back to each key of the document before the block, or
                of the block.
            tokens_read: [B, 1] int64, or one number for all rows: tokens of that document before the block.
        """
        latest = self._latest.gather(1, (-age).clamp(min=0))
        return torch.where((age > 0) | (latest < 0), -tokens_read, latest)

    @property
    def tokens_of_last(self) -> Tensor:
        """[B] int64: tokens of the document that the block ends in, from its start in the block; 0 if it has none."""
        block = self.starts.size(1)
        latest = self._latest[:, -1]
        return (block - latest).masked_fill(latest < 0, 0)
