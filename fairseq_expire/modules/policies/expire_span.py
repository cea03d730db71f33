"""Expire-Span: a layer predicts the span of each state ("Not All Memories Are Created Equal", section 4.1-4.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules.memory import LayerMemory
from fairseq_expire.modules.memory_budget import hidden_by_budget
from fairseq_expire.modules.policies.base import MemoryPolicy, check_memory_budget, check_span_limit, check_steps
from fairseq_expire.modules.visibility import Visibility


class ExpireSpan(MemoryPolicy):
    """Remembers each state for e_i = L * sigmoid(w . h_i / scale + b) steps, and R more on a soft ramp.

    The weights w start at zero and the bias so that every span is ``span_init``.

    Args:
        embed_dim: D, width of the states.
        max_span: L, the longest span, in steps.
        ramp: R, length in steps of the soft edge: m = clamp(1 + (e_i - distance) / R, 0, 1).
        span_init: the spans before training, in steps; between 0 and ``max_span``, both excluded.
        input_scale: divides w . h_i, so that spans react more slowly to the weights.
        shortening: cut the spans of each training block to a random share of L (section 4.2, regularization):
            e_i <- min(e_i, u * L) with u uniform in [0, 1).
        span_limit: while scoring, no span is longer than this many steps; None for no limit.
        memory_budget: N; a query sees at most so many memories, see :mod:`fairseq_expire.modules.memory_budget`. None
            for no limit.
    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        max_span: int,
        ramp: int,
        span_init: float,
        input_scale: float = 1.0,
        shortening: bool = False,
        span_limit: int | None = None,
        memory_budget: int | None = None,
    ):
        super().__init__(ramp=ramp)
        check_steps("max_span is the longest span in steps", max_span)
        if not 0 < span_init < max_span:
            raise ValueError(
                f"span_init is the span of every state before training: expected more than 0 and less than "
                f"max_span = {max_span}, got {span_init}"
            )
        if not 0 < input_scale < math.inf:
            raise ValueError(
                f"input_scale divides the input of the span predictor: expected more than 0 and less than infinity, "
                f"got {input_scale}"
            )
        check_span_limit(span_limit)
        check_memory_budget(memory_budget)
        self.max_span = max_span
        self.input_scale = input_scale
        self.shortening = shortening
        self.span_limit = span_limit
        self.memory_budget = memory_budget
        self.predictor = nn.Linear(embed_dim, 1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(self.predictor.bias, math.log(span_init / (max_span - span_init)))

    @property
    def max_age(self) -> int:
        return math.ceil(self.max_span + self.ramp)

    def draw_shortening(self) -> float | None:
        return torch.rand(()).item() if self.shortening else None

    def spans(self, states: Tensor) -> Tensor:
        dtype = torch.promote_types(states.dtype, torch.float32)
        # Under autocast the product would run in half precision.
        with torch.autocast(states.device.type, enabled=False):
            weight = self.predictor.weight.to(dtype) / self.input_scale
            score = F.linear(states.to(dtype), weight, self.predictor.bias.to(dtype))
            spans = self.max_span * score.sigmoid()
        return self.limit_spans(spans)

    def shorten(self, spans: Tensor, shortening: float | None) -> Tensor:
        return spans if shortening is None else spans.clamp(max=shortening * self.max_span)

    def hidden_from(
        self, spans: Tensor, memory: LayerMemory, *, block: int, next_start: Tensor | None
    ) -> Tensor | None:
        if self.memory_budget is None or max(memory.counts) <= self.memory_budget:
            return next_start
        hidden = hidden_by_budget(
            spans.detach().squeeze(-1), memory.age, block=block, budget=self.memory_budget, next_start=next_start
        )
        return hidden if next_start is None else torch.minimum(hidden, next_start)

    def cut_by_budget(self, visibility: Visibility, *, next_start: Tensor | None) -> Tensor | None:
        if self.memory_budget is None:
            return None
        hidden_from = visibility.hidden_from
        if hidden_from is None:
            return torch.zeros_like(visibility.age[:, 0])
        expires_at = visibility.expires_at.squeeze(1)
        # The last query that sees a memory comes before the one that it is hidden from. A memory that is hidden from
        # the query after the block is deleted, and so is counted once.
        cut = (hidden_from <= visibility.block) & (hidden_from <= (expires_at - self.ramp).floor() + 1)
        # What expires by then is not cut.
        cut &= hidden_from < expires_at
        if next_start is not None:
            cut &= hidden_from < next_start
        return cut.sum(dim=1)

    def penalty(self, visibility: Visibility, *, padding: Tensor | None) -> Tensor:
        """Charges each memory e_i / R for every query that sees it on its ramp (the paper's "Loss Computation")."""
        charges = visibility.queries_on_ramp(padding)
        return (visibility.span * charges).sum(dim=(1, 2)) / self.ramp

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}, ramp={self.ramp}, shortening={self.shortening}"
