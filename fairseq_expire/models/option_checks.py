"""Checks of options that need no model: its size, and the clusters of large vocabularies."""

import os
from typing import TYPE_CHECKING

import torch
from fairseq import options

from fairseq_expire.modules import LanguageModelConfig
from fairseq_expire.modules.adaptive_vocabulary import Clusters

if TYPE_CHECKING:
    from fairseq_expire.models.memory_lm import MemoryLMConfig


def check_size(config: LanguageModelConfig) -> None:
    """Checks that the weights fit into the memory of this machine, before a model is built.

    Raises:
        ValueError: they do not; the message names the options that make them large.
    """
    if min(config.embed_dim, config.num_heads) < 1:
        # MemoryTransformer has a message for this.
        return
    # The policy checks its own options, from which the position range may follow. The meta device draws no random
    # numbers.
    with torch.device("meta"):
        config.policy()
    layer = 4 * config.embed_dim**2 + 2 * config.embed_dim * config.ffn_dim
    floats = {
        "--decoder-layers, --decoder-embed-dim or --decoder-ffn-embed-dim": config.num_layers * layer,
        "--position-range (by default --tokens-per-sample or as far as a state is remembered, see --help)": (
            config.position_range * config.embed_dim // max(1, config.num_heads)
        ),
        "--decoder-embed-dim or the dictionary": 0 if config.adaptive_input else config.vocab_size * config.embed_dim,
    }
    needed, available = 4 * sum(floats.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ValueError(
            f"the weights of this model take {needed:,} bytes, and this machine has {available:,} bytes of memory: "
            f"lower {max(floats, key=floats.get)}"
        )


def check_sharing(cfg: "MemoryLMConfig") -> None:
    """Checks the options of a model that predicts labels.

    Raises:
        ValueError: inputs and labels would share weights; the message names the option.
    """
    for option in ("share_decoder_input_output_embed", "tie_adaptive_weights"):
        if getattr(cfg, option):
            raise ValueError(
                f"--{option.replace('_', '-')} uses one matrix for the symbols that are read and those that are "
                "predicted, and labels have a dictionary of their own: leave it out, or take a preset of --arch that "
                "does not set it (expire_span_lm_tiny and expire_span_lm_wikitext103 do)"
            )


def check_budget(config: LanguageModelConfig, memory_budget: int | None) -> None:
    """Raises ValueError if the memory policy of a model takes no notice of a budget that is asked for."""
    if memory_budget is not None:
        with torch.device("meta"):
            policy = config.policy()
        if policy.memory_budget != memory_budget:
            raise ValueError(
                f"--memory-budget {memory_budget}: {type(policy).__name__} has no budget; leave the option out, or let "
                "its policy take memory_budget"
            )


def input_clusters(cfg: "MemoryLMConfig", symbols: int) -> Clusters | None:
    """Returns the clusters of the adaptive input (Baevski & Auli 2018); None without ``--adaptive-input``.

    Args:
        cfg: the options.
        symbols: size of the dictionary.
    Raises:
        ValueError: the cutoffs or the factor do not fit the dictionary or the model.
    """
    if not cfg.adaptive_input:
        return None
    return _clusters(
        "--adaptive-input-cutoff",
        cfg.adaptive_input_cutoff,
        cfg.adaptive_input_factor,
        symbols=symbols,
        embed_dim=cfg.decoder_embed_dim,
    )


def softmax_clusters(cfg: "MemoryLMConfig", symbols: int) -> Clusters | None:
    """Returns the clusters of the adaptive softmax (Grave et al. 2017); None without ``--adaptive-softmax-cutoff``.

    Args:
        cfg: the options.
        symbols: size of the dictionary.
    Raises:
        ValueError: the cutoffs or the factor do not fit the dictionary or the model, or options exclude each other.
    """
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
    if cfg.adaptive_softmax_cutoff is None:
        return None
    return _clusters(
        "--adaptive-softmax-cutoff",
        cfg.adaptive_softmax_cutoff,
        cfg.adaptive_softmax_factor,
        symbols=symbols,
        embed_dim=cfg.decoder_embed_dim,
    )


def _clusters(option: str, given: str | None, factor: float, *, symbols: int, embed_dim: int) -> Clusters:
    try:
        clusters = Clusters(cutoffs=tuple(options.eval_str_list(given, type=int) or ()), factor=factor)
        last = len(clusters.ends(symbols)) - 1
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{option} needs rising word ranks like 20000,60000, at least 4 (the special symbols) and at most the "
            f"{symbols} symbols of the dictionary; got {given}"
        ) from None
    # Written this way, NaN is refused, too.
    if not factor >= 1 or clusters.width(embed_dim, last) < 1:
        raise ValueError(
            f"{option.replace('cutoff', 'factor')} is how many times narrower each further cluster is: expected at "
            f"least 1, and so that the last of {last + 1} clusters has a width of at least 1 of the {embed_dim} of the "
            f"first; got {factor}"
        )
    return clusters
