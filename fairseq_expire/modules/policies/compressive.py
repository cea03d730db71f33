"""Compressive memory: states that get old are compressed, several into one ("Compressive Transformers", Rae et al. 2020)."""

import torch
from torch import Tensor

from fairseq_expire.modules.layer_memory import EMPTY_AGE, LayerMemory
from fairseq_expire.modules.policies.base import (
    MemoryPolicy,
    NewlyCompressed,
    check_span_limit,
    check_steps,
)
from fairseq_expire.modules.visibility import Compressed

POOLINGS = ("mean", "max")


class Compressive(MemoryPolicy):
    """Remembers the last L states, and behind them C compressed memories, each of c consecutive older states, first in, first out.

    States are compressed when the oldest of the c is about to go, and what they become is seen from when that one is gone:
    there is no gap between the two, and what a query sees does not depend on blocks. Positions are counted in slots across
    both, so that the youngest compressed memory stands at L + 1. No gradient flows through a compressed memory.

    Args:
        max_span: L, how many states are remembered as they are.
        compressed_size: C, how many compressed memories are remembered.
        rate: c, how many states a compressed memory stands for.
        pooling: how it is made of them: "mean" or "max".
        span_limit: while scoring, nothing older than this many steps is seen; None for no limit.
    Raises:
        ValueError: if an argument is out of its range.
    """

    compresses = True

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
                f"max_span is the number of states remembered as they are: expected at least the {rate} that are compressed "
                f"into one, got {max_span}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling}")
        check_steps(
            "max_span + compressed_size x rate is how many steps back is remembered", max_span + compressed_size * rate
        )
        check_span_limit(span_limit)
        self.max_span = max_span
        self.compressed_size = compressed_size
        self.rate = rate
        self.pooling = pooling
        self.span_limit = span_limit

    @property
    def longest(self) -> int | None:
        return None if self.training else self.span_limit

    @property
    def reach(self) -> int:
        return self.max_span + self.compressed_size * self.rate

    @property
    def compressed_span(self) -> float:
        """Steps from the oldest state of a compressed memory on, as all ages of compressed memories are counted."""
        return float(self.max_span + self.compressed_size * self.rate)

    def spans(self, states: Tensor) -> Tensor:
        dtype = torch.promote_types(states.dtype, torch.float32)
        return torch.full((*states.shape[:-1], 1), float(self.max_span), dtype=dtype, device=states.device)

    def compressed(self, slots: Tensor) -> Compressed:
        return Compressed(slots, after=self.max_span, rate=self.rate)

    def compress(self, memory: LayerMemory, states: Tensor, padding: Tensor | None) -> NewlyCompressed:
        """What a query of this block, or the first of the next, is the first to see."""
        block, rate, device = states.size(1), self.rate, states.device
        # Groups are counted from the first token of the stream. The oldest state still there begins the first one that is left.
        done = -(-max(0, memory.read - self.max_span) // rate)
        first = memory.read - rate * done
        groups = max(0, (first + block - self.max_span - 1) // rate + 1)
        begins = first - rate * torch.arange(groups, device=device)  # [G], steps from the first query

        # Where each of their states is; the last column takes what belongs to none of them.
        whole = memory.age_with(block, padding)  # [B, M + T]
        place = first - whole
        mine = (place >= 0) & (place < groups * rate) & ~memory.compressed_slots(block)
        where = torch.full((len(states), groups * rate + 1), -1, device=device)
        slots = torch.arange(whole.size(1), device=device).expand_as(place)
        where = where.scatter_(1, place.masked_fill(~mine, groups * rate), slots)[:, :-1]  # [B, G c]
        present = (where >= 0).unflatten(1, (groups, rate))  # [B, G, c]
        # Slots that hold nothing may hold anything.
        sources = self._gather(memory, states.detach(), where).masked_fill(~present.flatten(1).unsqueeze(-1), 0)
        pooled = self._pool(sources.unflatten(1, (groups, rate)), present)
        age = begins.expand(len(states), groups).masked_fill(~present.any(dim=-1), EMPTY_AGE)
        return NewlyCompressed(states=pooled, age=age)

    @staticmethod
    def _gather(memory: LayerMemory, states: Tensor, where: Tensor) -> Tensor:
        """[B, N, D], the slots ``where`` [B, N] of memory and block; anything where that is negative."""
        width, slots = states.size(-1), memory.age.size(1)
        # Of keys, values and states, the states.
        held = memory.states[..., -width:]
        index = where.unsqueeze(-1).expand(-1, -1, width)
        own = states.gather(1, (index - slots).clamp(min=0))
        return torch.where(index < slots, held.gather(1, index.clamp(0, slots - 1)), own) if slots else own

    def _pool(self, sources: Tensor, present: Tensor) -> Tensor:
        """[B, G, c, D] and [B, G, c] -> [B, G, D]."""
        present = present.unsqueeze(-1)
        if self.pooling == "max":
            return sources.masked_fill(~present, float("-inf")).amax(dim=2).masked_fill(~present.any(dim=2), 0)
        return sources.masked_fill(~present, 0).sum(dim=2) / present.sum(dim=2).clamp(min=1)

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}, compressed_size={self.compressed_size}, rate={self.rate}, pooling={self.pooling}"
