"""Expire-Span: every state predicts how long it stays ("Not All Memories Are Created Equal", section 4.1-4.2)."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .policy import MemoryPolicy, View


class ExpireSpan(MemoryPolicy):
    """Remembers each state for e_i = L * sigmoid(w . h_i / scale + b) steps, and R more on a soft ramp.

    The weights w start at zero and the bias so that every span is ``span_init``.

    Args:
        embed_dim: D, width of the states.
        max_span: L, the longest span, in steps.
        ramp: R, length in steps of the soft edge: m = clamp(1 + (e_i - distance) / R, 0, 1).
        span_init: the spans before training, in steps; between 0 and ``max_span``, both excluded.
        input_scale: divides w . h_i, so that spans react more slowly to the weights.
        shortening: whether training cuts the spans of each block to a random share of L (section 4.2,
            regularization): e_i <- min(e_i, u * L) with u uniform in [0, 1).
        span_limit: while scoring, no span is longer than this many steps; None for no limit.
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
        span_limit: Optional[int] = None,
    ):
        super().__init__()
        if max_span < 1:
            raise ValueError(f"max_span is the longest span in steps: expected at least 1, got {max_span}")
        if ramp < 1:
            raise ValueError(f"ramp is the length of the soft edge in steps: expected at least 1, got {ramp}")
        if not 0 < span_init < max_span:
            raise ValueError(
                f"span_init is the span of every state before training: expected more than 0 and less than "
                f"max_span = {max_span}, got {span_init}"
            )
        if input_scale <= 0:
            raise ValueError(f"input_scale divides the input of the span predictor: expected more than 0, got {input_scale}")
        if span_limit is not None and span_limit < 1:
            raise ValueError(f"span_limit is a number of steps: expected at least 1 or none, got {span_limit}")
        self.max_span = max_span
        self.ramp = ramp
        self.input_scale = input_scale
        self.shortening = shortening
        self.span_limit = span_limit
        self.predictor = nn.Linear(embed_dim, 1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(self.predictor.bias, math.log(span_init / (max_span - span_init)))

    def draw_shortening(self) -> Optional[float]:
        return torch.rand(()).item() if self.shortening else None

    def spans(self, candidates: Tensor) -> Tensor:
        """[B, S, D] -> [B, S], e_i in steps, in float32 or better: half precision cannot count to L."""
        dtype = torch.promote_types(candidates.dtype, torch.float32)
        # Autocast would run the product in half precision again.
        with torch.autocast(candidates.device.type, enabled=False):
            score = F.linear(
                candidates.to(dtype) / self.input_scale, self.predictor.weight.to(dtype), self.predictor.bias.to(dtype)
            ).squeeze(-1)
            span = self.max_span * score.sigmoid()
        if self.span_limit is not None and not self.training:
            span = span.clamp(max=self.span_limit)
        return span

    def view(
        self, candidates: Tensor, distance: Tensor, *, padding: Optional[Tensor], shortening: Optional[float]
    ) -> View:
        span = self.spans(candidates)  # [B, S]
        charged = span if shortening is None else span.clamp(max=shortening * self.max_span)

        soft_mask = 1 + (charged.unsqueeze(1) - distance) / self.ramp  # [B, T, S], not clamped
        visible = (distance >= 1) & (soft_mask > 0)
        on_ramp = (soft_mask > 0) & (soft_mask < 1)
        # The logarithm only ever sees the ramp, where alone it has a gradient: no 0 * inf in backward.
        bias = soft_mask.masked_fill(~on_ramp, 1.0).log().masked_fill(~visible, float("-inf"))

        # The paper's "Loss Computation": each memory is charged e_i / R for every query that sees it on its ramp.
        if padding is not None:
            on_ramp = on_ramp & ~padding.unsqueeze(-1)
        penalty = (charged * on_ramp.sum(dim=1)).sum(dim=-1) / self.ramp  # [B]

        # Spans cut for one block only do not delete: the next block may cut less.
        return View(
            bias=bias.unsqueeze(1), visible=visible, expiry=span.detach() + self.ramp, span=span, penalty=penalty
        )

    def extra_repr(self) -> str:
        return f"max_span={self.max_span}, ramp={self.ramp}, shortening={self.shortening}"
