"""Options for large vocabularies, checked and made bands of words."""

from typing import TYPE_CHECKING, Optional

from fairseq import options

from fairseq_expire.modules.adaptive import Bands

if TYPE_CHECKING:
    from .memory_lm import MemoryLMConfig


def input_bands(cfg: "MemoryLMConfig", symbols: int) -> Optional[Bands]:
    """The bands of the adaptive input (Baevski & Auli 2018), if it is asked for."""
    if not cfg.adaptive_input:
        return None
    return _bands("--adaptive-input-cutoff", cfg.adaptive_input_cutoff, cfg.adaptive_input_factor, symbols)


def softmax_bands(cfg: "MemoryLMConfig", symbols: int) -> Optional[Bands]:
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
    return _bands("--adaptive-softmax-cutoff", cfg.adaptive_softmax_cutoff, cfg.adaptive_softmax_factor, symbols)


def _bands(option: str, given: Optional[str], factor: float, symbols: int) -> Bands:
    bands = Bands(cutoff=tuple(options.eval_str_list(given, type=int) or ()), factor=factor)
    try:
        bands.ends(symbols)
    except ValueError:
        raise ValueError(
            f"{option} needs rising word ranks like 20000,60000, at least 4 (the special symbols) and at most the "
            f"{symbols} symbols of the dictionary; got {given}"
        ) from None
    return bands
