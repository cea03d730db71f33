"""Compressive memory: old states are compressed, several into one ("Compressive Transformers", Rae et al. 2020).

Size legend: B rows, T tokens of a block, M memories, G groups of c states each, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_expire.modules.borders import Borders
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
    Groups are counted from the first token of a document; a group that is not compressed when its document ends never
    is.

    Args:
        max_span: L, how many states are remembered as they are.
        compressed_size: C, how many compressed memories are remembered.
        rate: c, how many states a compressed memory stands for.
        pooling: how it is made of them, "mean" or "max".
        span_limit: while scoring, nothing older than this many steps is seen; None for no limit.
        memory_budget: None: other policies have a budget, the size of this memory is L + C.
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
        memory_budget: int | None = None,
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
        if memory_budget is not None:
            raise ValueError(
                f"memory_budget {memory_budget}: the compressive memory always has max_span + compressed_size = "
                f"{max_span + compressed_size} memories; leave the budget out, or train with smaller sizes"
            )
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

    def compress(
        self, memory: LayerMemory, inputs: Tensor, padding: Tensor | None, borders: Borders | None = None
    ) -> CompressedStates:
        """Compresses the groups whose first reader is a query of this block, or the first query of the next one."""
        rows, block, rate, device = inputs.size(0), inputs.size(1), self.rate, inputs.device
        # A group is done when the block's first query does not see its oldest state any more. Of each row, the age of
        # the first state in no such group.
        first_ages = [n - rate * -(-max(0, n - self.max_span) // rate) for n in memory.tokens_read]
        # A bound for rows with borders: no two groups whose first readers see them begin less than ``rate`` apart.
        groups = max(0, (max(first_ages) + block - self.max_span - 1) // rate + 1)
        if not groups:
            none = torch.zeros(rows, 0, dtype=torch.int64, device=device)
            return CompressedStates(inputs[:, :0], none, none)

        # Of each state of memory and block: the place of the oldest state of its group, both counted from the block's
        # first query, and the number of the group.
        age = torch.cat([memory.age, memory.block_age(block, padding)], dim=1)  # [B, M + T]
        tokens_read = _per_row(memory.tokens_read, device)
        start = -tokens_read if borders is None else borders.document_start(age, tokens_read)
        member = (-age - start) % rate
        oldest = -age - member
        number = torch.div(oldest + _per_row(first_ages, device), rate, rounding_mode="floor")
        first_reader = oldest + self.max_span + 1
        in_group = (oldest >= start) & (number >= 0) & (first_reader <= block)
        if borders is not None:
            in_group &= first_reader < borders.next_start(age)
        if memory.min_distance is not None:
            in_group[:, : memory.slots] &= memory.min_distance == 1
        # The slot of each state of each group in memory and block; the last column takes the slots in no group.
        slots = torch.full((rows, groups * rate + 1), -1, device=device)
        numbers = torch.arange(age.size(1), device=device).expand_as(age)
        place = (number * rate + member).masked_fill(~in_group, groups * rate)
        slots = slots.scatter_(1, place, numbers)[:, :-1]  # [B, G c]
        begins = torch.full((rows, groups + 1), EMPTY_AGE, device=device)
        begins = begins.scatter_(1, number.masked_fill(~in_group, groups), -oldest)[:, :-1]  # [B, G]
        present = (slots >= 0).view(rows, groups, rate)  # [B, G, c]

        states = _gather(memory, inputs, slots).view(rows, groups, rate, -1)  # [B, G, c, D]
        return CompressedStates(
            inputs=self._pool(states, present),
            age=begins,
            min_distance=torch.full((rows, groups), self.max_span + 1, device=device),
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


def _per_row(numbers: Sequence[int], device: torch.device) -> int | Tensor:
    """Returns a number for each row, [B, 1] int64; one number if they are equal, so that nothing goes to the device."""
    return numbers[0] if len(set(numbers)) == 1 else torch.tensor(numbers, device=device).unsqueeze(1)
