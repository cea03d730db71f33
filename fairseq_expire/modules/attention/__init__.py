"""Attention of a block over its memory: one operation, :func:`attend`.

- ``reference.py``: the operation in a few lines of PyTorch. It is the document, and runs where no fast path does.
- ``loops.py``: the equations as plain loops, to which tests compare the reference.
- ``tiled.py``: the fast path for CPUs and CUDA; all other files are parts of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_expire.modules.attention import reference, tiled
from fairseq_expire.modules.visibility import Visibility

__all__ = ["attend"]

FAST_DEVICES = ("cpu", "cuda")
FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visibility: Visibility,
    position: Tensor,
    counts: Sequence[int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of a block's queries to its memories and to its own past, with a soft mask.

    The equation is that of :func:`fairseq_expire.modules.attention.reference.attend`. On CPUs and CUDA a fast path
    computes it (``tiled.py``), in float16, bfloat16, float32 and float64. Other devices, other types, and queries, keys
    and values of different types go to the reference. The fast path has first derivatives only, and expects visible
    keys of a row to have different positions, as states of different tokens do; call the reference itself for anything
    else.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d]: S - T memories, oldest first unless some stand for several states, then the block's own T
            tokens.
        value: [B, K, S, d].
        visibility: of the S keys to the T queries.
        position: [P, d], row n - 1 is p(n), the embedding of position n; keys further back are scored without one.
        counts: how many of the S - T memory slots of each row are in use, the last ones; None for all. The other slots
            have to be invisible and finite. They cost next to nothing where all rows lack them.
        dropout: share of attention probabilities dropped.
    Returns:
        [B, K, T, d]; zeros for a query that sees nothing.
    Raises:
        ValueError: if ``counts`` does not give for each row a number of the S - T memory slots.
    """
    rows, slots = query.size(0), key.size(2) - query.size(2)
    if counts is not None and (len(counts) != rows or not all(0 <= count <= slots for count in counts)):
        raise ValueError(f"counts: expected a number from 0 to {slots} for each of {rows} rows, got {list(counts)}")
    same_type = query.dtype == key.dtype == value.dtype
    fast = query.device.type in FAST_DEVICES and query.dtype in FAST_DTYPES and same_type
    implementation = tiled.attend if fast else reference.attend
    return implementation(query, key, value, visibility=visibility, position=position, counts=counts, dropout=dropout)
