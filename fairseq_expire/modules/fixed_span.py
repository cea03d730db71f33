"""Fixed span: the last L states, as Transformer-XL remembers ("Transformer-XL", Dai et al. 2019, section 3.2)."""

from typing import Optional

import torch
from torch import Tensor

from .policy import MemoryPolicy, View


class FixedSpan(MemoryPolicy):
    """Remembers the last ``max_span`` states.

    Args:
        max_span: L, in steps.
        span_limit: while scoring, a shorter span to use instead; None for no limit.
    Raises:
        ValueError: if a span is not positive.
    """

    def __init__(self, *, max_span: int, span_limit: Optional[int] = None):
        super().__init__()
        if max_span < 1:
            raise ValueError(f"max_span is the number of steps remembered: expected at least 1, got {max_span}")
        if span_limit is not None and span_limit < 1:
            raise ValueError(f"span_limit is a number of steps: expected at least 1 or none, got {span_limit}")
        self.max_span = max_span
        self.span_limit = span_limit

    def view(
        self, candidates: Tensor, distance: Tensor, *, padding: Optional[Tensor], shortening: Optional[float]
    ) -> View:
        limited = self.span_limit is not None and not self.training
        span = min(self.max_span, self.span_limit) if limited else self.max_span
        visible = (distance >= 1) & (distance <= span)  # [B, T, S]
        bias = torch.zeros_like(distance, dtype=candidates.dtype).masked_fill(~visible, float("-inf"))
        spans = torch.full(candidates.shape[:2], float(span), device=candidates.device)  # [B, S]
        return View(bias=bias.unsqueeze(1), visible=visible, expiry=spans + 1, span=spans, penalty=None)

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}"
