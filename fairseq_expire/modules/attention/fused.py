"""Attention by a fused kernel of PyTorch, over steady memories: those that a whole block sees in full and without a position.

Size legend: B rows, K heads, T queries, S candidates, d width of a head.

Their scores are plain products (the equation in attention.py). Row by row, since rows hold different numbers of them.
"""

import logging
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Products are exponents to base 2.
SCALE = math.log(2)

_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@cache
def _kernel_works(dtype: torch.dtype) -> bool:
    """Whether PyTorch's kernel is there, does without a mask, and returns the logarithm of the sum; and whether its backward takes infinity
    for that."""
    with torch.device("cpu"):
        query, key = torch.full((2, 2, 3, 8), 0.5, dtype=dtype), torch.full((2, 2, 1100, 8), 0.5, dtype=dtype)
    try:
        out, total = _forward(query, key, key, 0.0, False, attn_mask=None, scale=SCALE)
        expected = torch.full_like(total, math.log(1100) + 2.0 * SCALE, dtype=torch.promote_types(dtype, torch.float32))
        right = torch.allclose(out, query) and torch.allclose(total.to(expected.dtype), expected)
        total[..., 2] = float("inf")
        grads = _backward(out, query, key, key, out, total, 0.0, False, attn_mask=None, scale=SCALE)
    except (TypeError, RuntimeError):
        return False
    return right and all(bool(x.isfinite().all()) for x in grads)


def has_fused_kernel(query: Tensor, dropout: float) -> bool:
    """Whether the functions below can be called; says once for each reason why they cannot."""
    if query.device.type != "cpu":
        reason = f"it is for CPUs, not for {query.device.type}"
    elif dropout:
        reason = "it drops no attention probabilities"
    elif not _kernel_works(query.dtype):
        reason = f"PyTorch {torch.__version__} has none that serves"
    else:
        return True
    _say(reason)
    return False


@cache
def _say(reason: str) -> None:
    logger.info("attention is computed step by step, without a fused kernel: %s", reason)


def _row(row: int, heads: Tensor, slots: slice = slice(None)) -> Tensor:
    return heads[row : row + 1, :, slots]


def attend_steady(query: Tensor, key: Tensor, value: Tensor, *, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attention to candidates that all queries see in full.

    Args:
        query: [B, K, T, d]; its products are exponents to base 2.
        key, value: [B, K, S, d].
        counts: how many of the candidates each row has, its first ones.
    Returns:
        [B, K, T, d]; and [B, K, T], the logarithm of each query's sum, -inf where there is nothing to see.
    """
    out, total = _nothing_yet(query)
    for row, count in enumerate(counts):
        if count:
            memories = (_row(row, heads, slice(count)) for heads in (key, value))
            part = _forward(_row(row, query), *memories, 0.0, False, attn_mask=None, scale=SCALE)
            out[row : row + 1], total[row : row + 1] = part
    return out, total


def steady_gradients(
    grad_out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    outcome: tuple[Tensor, Tensor],
    *,
    counts: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of :func:`attend_steady` in the backward pass of attention over these and other candidates.

    Args:
        grad_out: [B, K, T, d] of the output of that attention.
        tensors: query, key and value, as there.
        outcome: that output [B, K, T, d], and the logarithm of the sum over all its candidates [B, K, T]; inf for
            queries that see none.
        counts: as there.
    Returns:
        the gradients of query, key and value; 0 for the other candidates.
    """
    if not any(counts):
        return tuple(torch.zeros_like(x) for x in tensors)
    query, key, value = tensors
    grads = (
        torch.empty_like(query),
        *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (key, value)),
    )
    for row, count in enumerate(counts):
        steady, others = slice(count), slice(count, None)
        for gradient in grads[1:]:
            _row(row, gradient, others).zero_()
        if not count:
            _row(row, grads[0]).zero_()
            continue
        heads = _row(row, query), _row(row, key, steady), _row(row, value, steady)
        out, total = (_row(row, tensor).contiguous() for tensor in outcome)
        shares = _backward(_row(row, grad_out), *heads, out, total, 0.0, False, attn_mask=None, scale=SCALE)
        _row(row, grads[0]).copy_(shares[0])
        for gradient, share in zip(grads[1:], shares[1:]):
            _row(row, gradient, steady).copy_(share)
    return grads


def _nothing_yet(query: Tensor) -> tuple[Tensor, Tensor]:
    """What attention to nothing gives."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.zeros_like(query), query.new_full(query.shape[:3], float("-inf"), dtype=dtype)
