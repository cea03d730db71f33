"""Whether a model fits into memory at all, before minutes are spent on finding out, or the system ends the process."""

import os

import torch

from fairseq_expire.modules import LanguageModelConfig


def check_size(description: LanguageModelConfig) -> None:
    """Raises ValueError, naming what is too large, if the weights alone are more than this machine's memory."""
    this = description
    if min(this.embed_dim, this.num_heads) < 1:
        # The stack says what is wrong.
        return
    # Judged first: how far positions reach may follow from the policy's options. On no device, so that nothing is drawn.
    with torch.device("meta"):
        this.policy()
    layer = 4 * this.embed_dim**2 + 2 * this.embed_dim * this.ffn_dim
    floats = {
        "--decoder-layers, --decoder-embed-dim or --decoder-ffn-embed-dim": this.num_layers * layer,
        "--position-range (by default --tokens-per-sample or as far as a state is remembered, see --help)": (
            this.position_range * this.embed_dim // max(1, this.num_heads)
        ),
        "--decoder-embed-dim or the dictionary": 0 if this.adaptive_input else this.symbols * this.embed_dim,
    }
    needed, there = 4 * sum(floats.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"the weights of this model take {needed:,} bytes, and this machine has {there:,} bytes of memory: lower "
            f"{max(floats, key=floats.get)}"
        )
