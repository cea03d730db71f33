"""Fixed span: the last L states, as in Transformer-XL ("Transformer-XL", Dai et al. 2019, section 3.2)."""

import torch
from torch import Tensor

from fairseq_expire.modules.policies.base import MemoryPolicy, check_span_limit, check_steps


class FixedSpan(MemoryPolicy):
    """Remembers the last ``max_span`` states.

    Args:
        max_span: L, in steps.
        span_limit: while scoring, a shorter span to use instead; None for no limit.
    Raises:
        ValueError: if a span is not positive.
    """

    def __init__(self, *, max_span: int, span_limit: int | None = None):
        super().__init__(ramp=1)
        check_steps("max_span is the number of steps remembered", max_span)
        check_span_limit(span_limit)
        self.max_span = max_span
        self.span_limit = span_limit

    @property
    def max_age(self) -> int:
        return self.max_span

    def spans(self, states: Tensor) -> Tensor:
        span = self.max_span
        if self.span_limit is not None and not self.training:
            span = min(span, self.span_limit)
        dtype = torch.promote_types(states.dtype, torch.float32)
        return torch.full((*states.shape[:-1], 1), float(span), dtype=dtype, device=states.device)

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}"
