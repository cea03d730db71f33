"""``--arch compressive_transformer_lm``: the same model with a compressive memory (Compressive Transformer)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Callable

from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model

from fairseq_expire.fairseq_patches.trained_options import SPANS, TRAINED
from fairseq_expire.models.memory_lm import MemoryLanguageModel, MemoryLMConfig
from fairseq_expire.modules import Compressive
from fairseq_expire.modules.policies.compressive import POOLINGS


@dataclass
class CompressiveTransformerLMConfig(MemoryLMConfig):
    """Options that only ``--arch compressive_transformer_lm`` has."""

    compressed_size: int = field(
        default=512, metadata={"help": "how many compressed memories are kept (C)", TRAINED: SPANS}
    )
    compression_rate: int = field(
        default=4, metadata={"help": "how many states a compressed memory stands for (c)", TRAINED: True}
    )
    compression: ChoiceEnum(POOLINGS) = field(
        default="mean", metadata={"help": "how states are compressed: their mean or maximum", TRAINED: True}
    )


@register_model("compressive_transformer_lm", dataclass=CompressiveTransformerLMConfig)
class CompressiveTransformerLanguageModel(MemoryLanguageModel):
    """Remembers the last ``--max-span`` states, then ``--compressed-size`` compressed ones."""

    @classmethod
    def make_policy(cls, cfg: CompressiveTransformerLMConfig) -> Callable[[], Compressive]:
        return partial(
            Compressive,
            max_span=cfg.max_span,
            compressed_size=cfg.compressed_size,
            rate=cfg.compression_rate,
            pooling=str(cfg.compression),
            span_limit=cfg.span_limit,
            memory_budget=cfg.memory_budget,
        )

    @classmethod
    def default_position_range(cls, cfg: CompressiveTransformerLMConfig) -> int:
        """Positions continue across states and compressed memories."""
        return cfg.max_span + cfg.compressed_size
