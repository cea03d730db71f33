"""Fixed span: the last L states, as in Transformer-XL ("Transformer-XL", Dai et al. 2019, section 3.2)."""

from torch import Tensor

from fairseq_expire.modules.policies.base import (
    MemoryPolicy,
    check_memory_budget,
    check_span_limit,
    check_steps,
    equal_spans,
)


class FixedSpan(MemoryPolicy):
    """Remembers the last ``max_span`` states.

    Args:
        max_span: L, in steps.
        span_limit: while scoring, a shorter span to use instead; None for no limit.
        memory_budget: N, a shorter span to use instead, also in training; None for no limit.
    Raises:
        ValueError: if a span is not positive.
    """

    def __init__(self, *, max_span: int, span_limit: int | None = None, memory_budget: int | None = None):
        super().__init__(ramp=1)
        check_steps("max_span is the number of steps remembered", max_span)
        check_span_limit(span_limit)
        check_memory_budget(memory_budget)
        self.max_span = max_span
        self.span_limit = span_limit
        self.memory_budget = memory_budget

    @property
    def max_age(self) -> int:
        return self.max_span if self.memory_budget is None else min(self.max_span, self.memory_budget)

    def spans(self, states: Tensor) -> Tensor:
        return self.limit_spans(equal_spans(states, self.max_age))

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}"
