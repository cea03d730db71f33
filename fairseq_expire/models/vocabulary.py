"""The two ends of a model that know the dictionary: token embedding and output, for small and large vocabularies."""

import hashlib
from typing import TYPE_CHECKING, List, Optional, Tuple

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.models.transformer import Embedding
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from torch import Tensor, nn

if TYPE_CHECKING:
    from .memory_lm import MemoryLMConfig


def build_embedding(cfg: "MemoryLMConfig", dictionary: Dictionary) -> nn.Module:
    """[B, T] tokens -> [B, T, D]; adaptive (Baevski & Auli 2018) if asked for."""
    if not cfg.adaptive_input:
        return Embedding(len(dictionary), cfg.decoder_embed_dim, dictionary.pad())
    cutoff = _cutoffs("--adaptive-input-cutoff", cfg.adaptive_input_cutoff, len(dictionary))
    return AdaptiveInput(
        len(dictionary),
        dictionary.pad(),
        cfg.decoder_embed_dim,
        cfg.adaptive_input_factor,
        cfg.decoder_embed_dim,
        cutoff,
    )


def build_output(
    cfg: "MemoryLMConfig", dictionary: Dictionary, embed_tokens: nn.Module
) -> Tuple[Optional[nn.Module], Optional[AdaptiveSoftmax]]:
    """The output projection or the adaptive softmax (Grave et al. 2017); one of the two is None."""
    if cfg.share_decoder_input_output_embed and (cfg.adaptive_input or cfg.adaptive_softmax_cutoff is not None):
        raise ValueError(
            "--share-decoder-input-output-embed shares one full matrix: with --adaptive-input and "
            "--adaptive-softmax-cutoff use --tie-adaptive-weights instead"
        )
    if cfg.tie_adaptive_weights and not (
        cfg.adaptive_input
        and cfg.adaptive_input_cutoff == cfg.adaptive_softmax_cutoff
        and cfg.adaptive_input_factor == cfg.adaptive_softmax_factor
    ):
        raise ValueError(
            "--tie-adaptive-weights needs --adaptive-input with the cutoffs and factor of the adaptive softmax, got "
            f"input {cfg.adaptive_input_cutoff} x {cfg.adaptive_input_factor} and "
            f"softmax {cfg.adaptive_softmax_cutoff} x {cfg.adaptive_softmax_factor}"
        )
    if cfg.tie_adaptive_proj and not cfg.tie_adaptive_weights:
        raise ValueError("--tie-adaptive-proj only works together with --tie-adaptive-weights")
    if cfg.adaptive_softmax_cutoff is not None:
        return None, AdaptiveSoftmax(
            len(dictionary),
            cfg.decoder_embed_dim,
            _cutoffs("--adaptive-softmax-cutoff", cfg.adaptive_softmax_cutoff, len(dictionary)),
            dropout=cfg.adaptive_softmax_dropout,
            adaptive_inputs=embed_tokens if cfg.tie_adaptive_weights else None,
            factor=cfg.adaptive_softmax_factor,
            tie_proj=cfg.tie_adaptive_proj,
        )
    projection = nn.Linear(cfg.decoder_embed_dim, len(dictionary), bias=False)
    if cfg.share_decoder_input_output_embed:
        projection.weight = embed_tokens.weight
    else:
        nn.init.normal_(projection.weight, std=cfg.decoder_embed_dim**-0.5)
    return projection, None


def dictionary_digest(dictionary: Dictionary) -> Tensor:
    """[4] int64, the first half of the SHA-256 of the symbols in order. Integers survive ``--fp16`` and averaging."""
    digest = hashlib.sha256("\n".join(dictionary.symbols).encode("utf-8")).digest()
    return torch.tensor([int.from_bytes(digest[n : n + 4], "big") for n in range(0, 16, 4)])


def _cutoffs(option: str, given: Optional[str], num_symbols: int) -> List[int]:
    cutoffs = options.eval_str_list(given, type=int) or []
    if not cutoffs or cutoffs != sorted(set(cutoffs)) or cutoffs[0] < 4 or cutoffs[-1] > num_symbols:
        raise ValueError(
            f"{option} needs rising word ranks like 20000,60000, at least 4 (the special symbols) and at most the "
            f"{num_symbols} symbols of the dictionary; got {given}"
        )
    return cutoffs
