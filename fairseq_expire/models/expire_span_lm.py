"""``--arch expire_span_lm`` and its presets: a language model that learns how long to remember each state."""

from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Optional

from fairseq.models import register_model, register_model_architecture
from fairseq.utils import safe_getattr

from fairseq_expire.fairseq_patches.trained_options import SPANS, TRAINED
from fairseq_expire.models.memory_lm import MemoryLanguageModel, MemoryLMConfig
from fairseq_expire.modules import ExpireSpan


@dataclass
class ExpireSpanLMConfig(MemoryLMConfig):
    """Options that only ``--arch expire_span_lm`` has."""

    span_ramp: int = field(
        default=128, metadata={"help": "length of the soft edge of a span, in steps (R)", TRAINED: SPANS}
    )
    span_init: Optional[float] = field(
        default=None,
        metadata={
            "help": "span of every state before training, in steps; sets the predictor's bias; default: --max-span / 16"
        },
    )
    span_input_scale: float = field(
        default=1.0,
        metadata={"help": "divides the input of the span predictor, so that spans react more slowly", TRAINED: SPANS},
    )
    span_shortening: bool = field(
        default=False, metadata={"help": "cut the spans of each training block to a random share of --max-span"}
    )


@register_model("expire_span_lm", dataclass=ExpireSpanLMConfig)
class ExpireSpanLanguageModel(MemoryLanguageModel):
    """Transformer-XL whose memories expire (Expire-Span)."""

    @classmethod
    def make_policy(cls, cfg: ExpireSpanLMConfig) -> Callable[[], ExpireSpan]:
        return partial(
            ExpireSpan,
            embed_dim=cfg.decoder_embed_dim,
            max_span=cfg.max_span,
            ramp=cfg.span_ramp,
            span_init=cfg.max_span / 16 if cfg.span_init is None else cfg.span_init,
            input_scale=cfg.span_input_scale,
            shortening=cfg.span_shortening,
            span_limit=cfg.span_limit,
            memory_budget=cfg.memory_budget,
        )


def _preset(args, **values) -> None:
    """Sets the options that the command line has left open."""
    for name, value in values.items():
        setattr(args, name, safe_getattr(args, name, value))


def _published_span_init(args) -> None:
    """Every span starts at a tenth of L, as in the published scripts."""
    _preset(args, span_init=args.max_span / 10)


@register_model_architecture("expire_span_lm", "expire_span_lm_tiny")
def expire_span_lm_tiny(args):
    """For two CPU cores: what ``make demo`` trains."""
    _preset(
        args,
        decoder_layers=3,
        decoder_embed_dim=128,
        decoder_ffn_embed_dim=512,
        decoder_attention_heads=2,
        decoder_normalize_before=True,
        dropout=0.0,
        position_range=128,
        max_span=4096,
        span_ramp=32,
        span_init=32.0,
        span_input_scale=8.0,
        share_decoder_input_output_embed=True,
    )


@register_model_architecture("expire_span_lm", "expire_span_lm_enwik8")
def expire_span_lm_enwik8(args):
    """The paper's enwik8 model (table 2)."""
    _preset(
        args,
        decoder_layers=12,
        decoder_embed_dim=512,
        decoder_ffn_embed_dim=2048,
        decoder_attention_heads=8,
        dropout=0.0,
        attention_dropout=0.3,
        activation_dropout=0.3,
        position_range=512,
        max_span=16384,
        span_ramp=128,
        span_shortening=True,
    )
    _published_span_init(args)


@register_model_architecture("expire_span_lm", "expire_span_lm_enwik8_small")
def expire_span_lm_enwik8_small(args):
    """The small enwik8 model of the published scripts."""
    _preset(
        args,
        decoder_layers=8,
        decoder_embed_dim=256,
        decoder_ffn_embed_dim=1024,
        decoder_attention_heads=4,
        dropout=0.0,
        position_range=256,
        max_span=4096,
        span_ramp=64,
        span_input_scale=64.0,
    )
    _published_span_init(args)


@register_model_architecture("expire_span_lm", "expire_span_lm_pg19")
def expire_span_lm_pg19(args):
    """The paper's character-level PG-19 model."""
    _preset(
        args,
        decoder_layers=12,
        decoder_embed_dim=512,
        decoder_ffn_embed_dim=2048,
        decoder_attention_heads=8,
        dropout=0.2,
        attention_dropout=0.2,
        position_range=512,
        max_span=16384,
        span_ramp=128,
    )
    _published_span_init(args)


@register_model_architecture("expire_span_lm", "expire_span_lm_wikitext103")
def expire_span_lm_wikitext103(args):
    """The paper's WikiText-103 model."""
    _preset(
        args,
        decoder_layers=8,
        decoder_embed_dim=1024,
        decoder_ffn_embed_dim=4096,
        decoder_attention_heads=8,
        dropout=0.0,
        decoder_dropout_in=0.2,
        decoder_dropout_out=0.2,
        attention_dropout=0.3,
        activation_dropout=0.3,
        position_range=256,
        max_span=8192,
        span_ramp=128,
        adaptive_input=True,
        adaptive_input_cutoff="20000,40000,200000",
        adaptive_softmax_cutoff="20000,40000,200000",
        tie_adaptive_weights=True,
        tie_adaptive_proj=True,
    )
    _published_span_init(args)
