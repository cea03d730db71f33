"""Options for large vocabularies, checked and made bands of words."""

from typing import TYPE_CHECKING

from fairseq import options

from fairseq_expire.modules.adaptive_vocabulary import Clusters

if TYPE_CHECKING:
    from fairseq_expire.models.memory_lm import MemoryLMConfig


def input_bands(cfg: "MemoryLMConfig", symbols: int) -> Clusters | None:
    """The bands of the adaptive input (Baevski & Auli 2018), if it is asked for."""
    if not cfg.adaptive_input:
        return None
    return _bands(
        "--adaptive-input-cutoff",
        cfg.adaptive_input_cutoff,
        cfg.adaptive_input_factor,
        symbols=symbols,
        embed_dim=cfg.decoder_embed_dim,
    )


def softmax_bands(cfg: "MemoryLMConfig", symbols: int) -> Clusters | None:
    """The bands of the adaptive softmax (Grave et al. 2017), if it is asked for."""
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
    return _bands(
        "--adaptive-softmax-cutoff",
        cfg.adaptive_softmax_cutoff,
        cfg.adaptive_softmax_factor,
        symbols=symbols,
        embed_dim=cfg.decoder_embed_dim,
    )


def _bands(option: str, given: str | None, factor: float, *, symbols: int, embed_dim: int) -> Clusters:
    try:
        bands = Clusters(cutoffs=tuple(options.eval_str_list(given, type=int) or ()), factor=factor)
        last = len(bands.ends(symbols)) - 1
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{option} needs rising word ranks like 20000,60000, at least 4 (the special symbols) and at most the "
            f"{symbols} symbols of the dictionary; got {given}"
        ) from None
    # A factor that is NaN is not at least 1.
    if not factor >= 1 or bands.width(embed_dim, last) < 1:
        raise ValueError(
            f"{option.replace('cutoff', 'factor')} is how many times narrower each further band is: expected at least 1, and "
            f"so that the last of {last + 1} bands has a width of at least 1 of the {embed_dim} of the first; got {factor}"
        )
    return bands
