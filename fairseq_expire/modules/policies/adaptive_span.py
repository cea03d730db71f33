"""Adaptive-Span: every head learns how far it looks ("Adaptive Attention Span in Transformers", Sukhbaatar et al.
2019).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fairseq_expire.modules.policies.base import (
    MemoryPolicy,
    ParameterBounds,
    check_memory_budget,
    check_span_limit,
    check_steps,
)
from fairseq_expire.modules.visibility import Visibility


class AdaptiveSpan(MemoryPolicy):
    """Each head sees the last z L + 1 states in full, and R more on a soft ramp, but none beyond L (equation 5).

    z in [0, 1] is a parameter of each head, or one of the layer. A gradient step may take it out of that range: the
    training loop brings it back after each step with :func:`fairseq_expire.modules.keep_bounds` (the fairseq task
    does). Only what the longest head can see is stored.

    Args:
        num_heads: K.
        max_span: L, the longest span, in steps.
        ramp: R, length in steps of the soft edge.
        span_init: z L before training, in steps.
        per_layer: one span for all heads of the layer.
        span_limit: while scoring, no span is longer than this many steps; None for no limit.
        memory_budget: N; nothing further back than this many steps is seen; None for no limit.
    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        max_span: int,
        ramp: int,
        span_init: float = 0.0,
        per_layer: bool = False,
        span_limit: int | None = None,
        memory_budget: int | None = None,
    ):
        super().__init__(ramp=ramp)
        check_steps("max_span is the longest span in steps", max_span)
        if not 0 <= span_init <= max_span:
            raise ValueError(
                "span_init is the span of every head before training: expected 0 to "
                f"max_span = {max_span}, got {span_init}"
            )
        check_span_limit(span_limit)
        check_memory_budget(memory_budget)
        self.max_span = max_span
        self.max_distance = max_span if memory_budget is None else min(max_span, memory_budget)
        self.span_limit = span_limit
        self.memory_budget = memory_budget
        self.ratio = nn.Parameter(torch.full((1 if per_layer else num_heads,), span_init / max_span))

    def bounds(self) -> Iterator[ParameterBounds]:
        yield ParameterBounds(self.ratio, 0.0, 1.0)

    def spans(self, states: Tensor) -> Tensor:
        dtype = torch.promote_types(states.dtype, torch.float32)
        # The youngest state is one step back, and every head sees it.
        span = self.limit_spans(self.max_span * self.ratio.to(dtype) + 1)
        return span.expand(*states.shape[:-1], -1)

    def penalty(self, visibility: Visibility, *, padding: Tensor | None) -> Tensor:
        """Charges z L averaged over heads for every query: the mean over tokens is that of the paper (equation 6)."""
        age, block = visibility.age, visibility.block
        queries = age.new_full((age.size(0),), block) if padding is None else block - padding.sum(dim=1)
        return queries * (self.max_span * self.ratio.to(visibility.span.dtype).mean())

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}, ramp={self.ramp}, spans={len(self.ratio)}"
