"""Compressive memory: old states are compressed, several into one ("Compressive Transformers", Rae et al. 2020).

Size legend: B rows, T tokens of a block, M memories, G groups of c states each, D width.
"""

import torch
from torch import Tensor

from fairseq_expire.modules.memory import EMPTY_AGE, LayerMemory
from fairseq_expire.modules.policies.base import (
    CompressedStates,
    MemoryPolicy,
    check_span_limit,
    check_steps,
    equal_spans,
)
from fairseq_expire.modules.visibility import Visibility

POOLINGS = ("mean", "max")


class Compressive(MemoryPolicy):
    """Remembers the last L states, and behind them C compressed memories, each of c consecutive older states, first in,
    first out.

    A group of states is compressed when its oldest state is about to go, and the result is seen from when that state is
    gone. So there is no gap between the two, and what a query sees does not depend on blocks. Positions are counted in
    slots across both: the youngest compressed memory stands at L + 1. No gradient flows through a compressed memory.

    Args:
        max_span: L, how many states are remembered as they are.
        compressed_size: C, how many compressed memories are remembered.
        rate: c, how many states a compressed memory stands for.
        pooling: how it is made of them, "mean" or "max".
        span_limit: while scoring, nothing older than this many steps is seen; None for no limit.
    Raises:
        ValueError: if an argument is out of its range.
    """

    keeps_inputs = True

    def __init__(
        self,
        *,
        max_span: int,
        compressed_size: int,
        rate: int = 4,
        pooling: str = "mean",
        span_limit: int | None = None,
    ):
        super().__init__(ramp=1)
        if compressed_size < 1:
            raise ValueError(
                f"compressed_size is the number of compressed memories: expected at least 1, got {compressed_size}"
            )
        if rate < 2:
            raise ValueError(f"rate is how many states a compressed memory stands for: expected at least 2, got {rate}")
        if not max_span >= rate:
            raise ValueError(
                "max_span is the number of states remembered as they are: expected at least the "
                f"{rate} that are compressed into one, got {max_span}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling}")
        check_steps(
            "max_span + compressed_size x rate is how many steps back is remembered", max_span + compressed_size * rate
        )
        check_span_limit(span_limit)
        self.max_span = max_span
        self.compressed_size = compressed_size
        self.rate = self.stride = rate
        self.pooling = pooling
        self.span_limit = span_limit

    @property
    def max_distance(self) -> int | None:  # type: ignore[override]  # a plain attribute of other policies
        return None if self.training else self.span_limit

    @property
    def max_age(self) -> int:
        return self.max_span + self.compressed_size * self.rate

    def spans(self, states: Tensor) -> Tensor:
        return equal_spans(states, self.max_span)

    def visibility(
        self,
        spans: Tensor,
        memory: LayerMemory,
        *,
        block: int,
        shortening: float | None = None,
        next_start: Tensor | None = None,
    ) -> Visibility:
        if memory.min_distance is not None:
            # The span of a compressed memory, whose age is that of its oldest state.
            compressed = memory.min_distance > 1
            spans = spans.masked_fill(compressed.unsqueeze(-1), float(self.max_age))
        return super().visibility(spans, memory, block=block, shortening=shortening, next_start=next_start)

    def compress(self, memory: LayerMemory, inputs: Tensor, padding: Tensor | None) -> CompressedStates:
        """Compresses the groups whose first reader is a query of this block, or the first query of the next one."""
        rows, block, rate = inputs.size(0), inputs.size(1), self.rate
        # Groups are counted from the first token of the stream. A group is done when the block's first query does not
        # see its oldest state any more.
        groups_done = -(-max(0, memory.tokens_read - self.max_span) // rate)
        first_age = memory.tokens_read - rate * groups_done
        groups = max(0, (first_age + block - self.max_span - 1) // rate + 1)
        # Steps from the block's first query back to the oldest state of each group.
        begins = first_age - rate * torch.arange(groups, device=inputs.device)  # [G]
        if not groups:
            return CompressedStates(inputs[:, :0], begins.expand(rows, 0), begins.expand(rows, 0))

        # The slot of each state of each group in memory and block; the last column takes the slots in no group.
        age = torch.cat([memory.age, memory.block_age(block, padding)], dim=1)  # [B, M + T]
        place = first_age - age
        in_group = (place >= 0) & (place < groups * rate)
        if memory.min_distance is not None:
            in_group[:, : memory.slots] &= memory.min_distance == 1
        slots = torch.full((rows, groups * rate + 1), -1, device=inputs.device)
        numbers = torch.arange(age.size(1), device=inputs.device).expand_as(place)
        slots = slots.scatter_(1, place.masked_fill(~in_group, groups * rate), numbers)[:, :-1]  # [B, G c]
        present = (slots >= 0).view(rows, groups, rate)  # [B, G, c]

        states = _gather(memory, inputs, slots).view(rows, groups, rate, -1)  # [B, G, c, D]
        return CompressedStates(
            inputs=self._pool(states, present),
            age=begins.expand(rows, groups).masked_fill(~present.any(dim=-1), EMPTY_AGE),
            min_distance=torch.full((rows, groups), self.max_span + 1, device=inputs.device),
        )

    def _pool(self, states: Tensor, present: Tensor) -> Tensor:
        """Pools the states that are present.

        Args:
            states: [B, G, c, D]; anything where a state is missing.
            present: [B, G, c] bool.
        Returns:
            [B, G, D], zeros for groups without a state.
        """
        present = present.unsqueeze(-1)
        if self.pooling == "max":
            return states.masked_fill(~present, float("-inf")).amax(dim=2).masked_fill(~present.any(dim=2), 0)
        return states.masked_fill(~present, 0).sum(dim=2) / present.sum(dim=2).clamp(min=1)

    def extra_repr(self) -> str:
        sizes = f"max_span={self.max_span}, compressed_size={self.compressed_size}"
        return f"{sizes}, rate={self.rate}, pooling={self.pooling}"


def _gather(memory: LayerMemory, inputs: Tensor, slots: Tensor) -> Tensor:
    """Gathers the layer's inputs [B, N, D] from the slots [B, N] of memory and block; anything for negative slots."""
    index = slots.unsqueeze(-1).expand(-1, -1, inputs.size(-1))
    from_block = inputs.gather(1, (index - memory.slots).clamp(min=0))
    if not memory.slots:
        return from_block
    assert memory.inputs is not None
    from_memory = memory.inputs.gather(1, index.clamp(0, memory.slots - 1))
    return torch.where(index < memory.slots, from_memory, from_block)
