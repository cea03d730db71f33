"""What a layer says about a block that it has read.

Size legend: B rows, T tokens of a block, H heads of a span.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class LayerReport:
    """What happened in one layer while a block was read.

    Args:
        span: [B, T, H], how long the block's own states will stay, in steps, before any random shortening.
        penalty: [B], the policy's penalty summed over the block, before its weight, or None.
        count_seen: gives :attr:`memory_size`, when that is first asked for; so reading token by token, where few ask, takes less.
        reconstruction: [B], the loss that a learned compression learns from, summed over the block; or None.
    """

    span: Tensor
    penalty: Tensor | None
    count_seen: Callable[[], Tensor]
    reconstruction: Tensor | None = None

    @cached_property
    def memory_size(self) -> Tensor:
        """[B, T] int64, |C_t|: how many states each query saw."""
        return self.count_seen()
