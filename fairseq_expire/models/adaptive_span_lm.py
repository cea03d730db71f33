"""``--arch adaptive_span_lm``: the same model in which every head learns how far it looks."""

from dataclasses import dataclass, field
from functools import partial
from typing import Callable

from fairseq.models import register_model

from fairseq_expire.fairseq_patches.trained_options import SPANS, TRAINED
from fairseq_expire.models.memory_lm import MemoryLanguageModel, MemoryLMConfig
from fairseq_expire.modules import AdaptiveSpan


@dataclass
class AdaptiveSpanLMConfig(MemoryLMConfig):
    """Options that only ``--arch adaptive_span_lm`` has."""

    span_ramp: int = field(
        default=32, metadata={"help": "length of the soft edge of a span, in steps (R)", TRAINED: SPANS}
    )
    span_init: float = field(default=0.0, metadata={"help": "the span of every head before training, in steps"})
    adapt_span_layer: bool = field(
        default=False, metadata={"help": "learn one span for each layer instead of each head", TRAINED: True}
    )


@register_model("adaptive_span_lm", dataclass=AdaptiveSpanLMConfig)
class AdaptiveSpanLanguageModel(MemoryLanguageModel):
    """Remembers the last ``--max-span`` states, or as many as its longest head looks back to (Adaptive-Span)."""

    @classmethod
    def make_policy(cls, cfg: AdaptiveSpanLMConfig) -> Callable[[], AdaptiveSpan]:
        return partial(
            AdaptiveSpan,
            num_heads=cfg.decoder_attention_heads,
            max_span=cfg.max_span,
            ramp=cfg.span_ramp,
            span_init=cfg.span_init,
            per_layer=cfg.adapt_span_layer,
            span_limit=cfg.span_limit,
            memory_budget=cfg.memory_budget,
        )

    @classmethod
    def default_position_range(cls, cfg: AdaptiveSpanLMConfig) -> int:
        """Every state that can be seen has a position."""
        return cfg.max_span
