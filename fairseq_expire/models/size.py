"""Whether a model fits into memory at all, before minutes are spent on finding out, or the system ends the process."""

import os

import torch

from fairseq_expire.modules import LanguageModelConfig


def check_size(config: LanguageModelConfig) -> None:
    """Raises ValueError, naming what is too large, if the weights alone are more than this machine's memory."""
    if min(config.embed_dim, config.num_heads) < 1:
        # The stack says what is wrong.
        return
    # Judged first: how far positions reach may follow from the policy's options. On no device, so that nothing is drawn.
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
    needed, there = 4 * sum(floats.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"the weights of this model take {needed:,} bytes, and this machine has {there:,} bytes of memory: lower "
            f"{max(floats, key=floats.get)}"
        )
