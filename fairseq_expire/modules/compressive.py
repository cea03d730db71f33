"""Compressive memory: states that get old are squeezed, several into one ("Compressive Transformers", Rae et al. 2020)."""

from typing import Optional

import torch
from torch import Tensor, nn

from .layer_memory import EMPTY_AGE, LayerMemory
from .policy import ContentAttention, Made, MemoryPolicy, check_span_limit
from .soft_mask import Summaries

POOLINGS = ("mean", "max", "conv")


class Compressive(MemoryPolicy):
    """Remembers the last L states, and behind them C summaries of c consecutive older states each, first in, first out.

    A summary is made when the oldest of its states is about to go, and seen from when that one is gone: between states and
    summaries there is no gap, and what a query sees does not depend on blocks. Positions are counted in slots across
    both: the youngest summary stands at L + 1. Nothing flows back through a summary: mean and max have no parameters, and
    the convolution learns from :meth:`reconstruction` alone (section 3.2 there).

    Args:
        embed_dim: D, width of the states.
        max_span: L, how many states are remembered as they are.
        compressed_size: C, how many summaries are remembered.
        rate: c, how many states a summary stands for.
        pooling: how it is made of them: "mean", "max", or "conv", a learned convolution that starts as the mean.
        span_limit: while scoring, nothing older than this many steps is seen; None for no limit.
    Raises:
        ValueError: if an argument is out of its range.
    """

    makes_summaries = True

    def __init__(
        self,
        *,
        embed_dim: int,
        max_span: int,
        compressed_size: int,
        rate: int = 4,
        pooling: str = "mean",
        span_limit: Optional[int] = None,
    ):
        super().__init__(ramp=1)
        if compressed_size < 1:
            raise ValueError(f"compressed_size is the number of summaries remembered: expected at least 1, got {compressed_size}")
        if rate < 2:
            raise ValueError(f"rate is how many states a summary stands for: expected at least 2, got {rate}")
        if max_span < rate:
            raise ValueError(
                f"max_span is the number of states remembered as they are: expected at least the {rate} that a summary is "
                f"made of, got {max_span}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling}")
        check_span_limit(span_limit)
        self.max_span = max_span
        self.compressed_size = compressed_size
        self.rate = rate
        self.pooling = pooling
        self.span_limit = span_limit
        self.conv = None
        if pooling == "conv":
            self.conv = nn.Conv1d(embed_dim, embed_dim, rate, stride=rate)
            nn.init.zeros_(self.conv.bias)
            with torch.no_grad():
                self.conv.weight.copy_(torch.eye(embed_dim).unsqueeze(-1).expand(-1, -1, rate) / rate)

    @property
    def longest(self) -> Optional[int]:
        return None if self.training else self.span_limit

    @property
    def summary_span(self) -> float:
        """Steps from the oldest state of a summary on, as all ages of summaries are counted."""
        return float(self.max_span + self.compressed_size * self.rate)

    def spans(self, states: Tensor) -> Tensor:
        dtype = torch.promote_types(states.dtype, torch.float32)
        return torch.full((*states.shape[:-1], 1), float(self.max_span), dtype=dtype, device=states.device)

    def summaries(self, slots: Tensor) -> Summaries:
        return Summaries(slots, after=self.max_span, rate=self.rate)

    def make_summaries(self, memory: LayerMemory, states: Tensor, padding: Optional[Tensor]) -> Made:
        """Those that a query of this block, or the first of the next, is the first to see."""
        block, rate = states.size(1), self.rate
        whole = memory.age_with(block, padding)  # [B, M + T]
        is_state = (whole < EMPTY_AGE) & ~memory.summary_slots(block)
        # The oldest slot of all begins a group: it is the first token of the stream, or a summary.
        oldest = whole.masked_fill(whole >= EMPTY_AGE, 0).amax(dim=1, keepdim=True)  # [B, 1]
        too_old = (oldest - self.max_span).clamp(min=0)
        first = oldest - (too_old + rate - 1) // rate * rate  # [B, 1], age of the first group that is not yet a summary
        groups = -(-block // rate)
        begins = first - rate * torch.arange(groups, device=whole.device)  # [B, G]
        due = begins + block > self.max_span

        # Where each of their states is; the last column takes what belongs to none of them.
        place = torch.where(is_state, first - whole, groups * rate)
        place = torch.where((place >= 0) & (place < groups * rate), place, groups * rate)
        where = torch.full((whole.size(0), groups * rate + 1), -1, device=whole.device)
        where.scatter_(1, place, torch.arange(whole.size(1), device=whole.device).expand_as(place))
        where = where[:, :-1]  # [B, G c]
        sources = self._gather(memory, states.detach(), where)
        present = (where >= 0).unflatten(1, (groups, rate)) & due.unsqueeze(-1)  # [B, G, c]
        made = self._squeeze(sources.unflatten(1, (groups, rate)), present)
        age = begins.masked_fill(~present.any(dim=-1), EMPTY_AGE)
        return Made(states=made, age=age, sources=sources, present=present)

    @staticmethod
    def _gather(memory: LayerMemory, states: Tensor, where: Tensor) -> Tensor:
        """[B, N, D], the slots ``where`` [B, N] of memory and block; anything where that is negative."""
        width, slots = states.size(-1), memory.age.size(1)
        # Of keys, values and states, the states.
        held = memory.states[..., -width:]
        index = where.unsqueeze(-1).expand(-1, -1, width)
        own = states.gather(1, (index - slots).clamp(min=0))
        return torch.where(index < slots, held.gather(1, index.clamp(0, slots - 1)), own) if slots else own

    def _squeeze(self, sources: Tensor, present: Tensor) -> Tensor:
        """[B, G, c, D] and [B, G, c] -> [B, G, D]."""
        present = present.unsqueeze(-1)
        if self.pooling == "max":
            return sources.masked_fill(~present, float("-inf")).amax(dim=2).masked_fill(~present.any(dim=2), 0)
        sources = sources.masked_fill(~present, 0)
        if self.conv is None:
            return sources.sum(dim=2) / present.sum(dim=2).clamp(min=1)
        return self.conv(sources.flatten(1, 2).transpose(1, 2)).transpose(1, 2)

    def reconstruction(self, made: Made, attention: ContentAttention) -> Optional[Tensor]:
        """[B], what the summaries lose of what attention reads from their states, squared, summed over the block: the paper's
        attention-reconstruction loss (algorithm 2), a mean over the width so that its size does not depend on it.
        """
        if self.conv is None:
            return None
        seen = made.present.any(dim=-1)
        with torch.no_grad():
            expected = attention(made.sources, made.present.flatten(1))
        return (attention(made.states, seen) - expected).square().mean(dim=-1).sum(dim=1)

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}, compressed_size={self.compressed_size}, rate={self.rate}, pooling={self.pooling}"
