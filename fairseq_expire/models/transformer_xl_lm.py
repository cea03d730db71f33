"""``--arch transformer_xl_lm``: the same model with a fixed span, the baseline of every comparison."""

from dataclasses import dataclass
from functools import partial
from typing import Callable

from fairseq.models import register_model

from fairseq_expire.models.memory_lm import MemoryLanguageModel, MemoryLMConfig
from fairseq_expire.modules import FixedSpan


@dataclass
class TransformerXLLMConfig(MemoryLMConfig):
    """Nothing but the shared options."""


@register_model("transformer_xl_lm", dataclass=TransformerXLLMConfig)
class TransformerXLLanguageModel(MemoryLanguageModel):
    """Remembers the last ``--max-span`` states, each with a position (Transformer-XL)."""

    @classmethod
    def make_policy(cls, cfg: TransformerXLLMConfig) -> Callable[[], FixedSpan]:
        return partial(FixedSpan, max_span=cfg.max_span, span_limit=cfg.span_limit, memory_budget=cfg.memory_budget)

    @classmethod
    def default_position_range(cls, cfg: TransformerXLLMConfig) -> int:
        """Every remembered state has a position, as in Transformer-XL."""
        return cfg.max_span
