"""Attention by a fused kernel of PyTorch, over far memories: those out of reach of positions.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates, d width of a head.

Scores of far memories are plain products and the soft mask is a bias (the equation in attention.py). Row by row, since rows hold
different numbers.
"""

import logging
import math
from functools import lru_cache
from typing import Sequence, Tuple

import torch
from torch import Tensor

from .soft_mask import Sight

logger = logging.getLogger(__name__)

# Floats of the bias that are made at once.
BIAS_SIZE = 1 << 22

# Products are exponents to base 2.
SCALE = math.log(2)

_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@lru_cache(maxsize=None)
def _kernel_works(dtype: torch.dtype) -> bool:
    """Whether PyTorch's kernel is there, takes a bias or none, returns the logarithm of the sum, and gives zeros to a query that sees
    nothing."""
    with torch.device("cpu"):
        query, key = torch.full((2, 2, 3, 8), 0.5, dtype=dtype), torch.full((2, 2, 1100, 8), 0.5, dtype=dtype)
        bias = torch.full((2, 2, 3, 1100), float("-inf"), dtype=torch.promote_types(dtype, torch.float32))
        # The first query sees two, the second one, the third nothing.
        bias[..., 0, -2:] = torch.arange(4.0).view(2, 2, 1).to(bias.dtype)
        bias[..., 1, -1] = 0.0
    expected = torch.logsumexp(bias[..., :2, :] + 2.0 * SCALE, dim=-1)
    try:
        out, total = _forward(query, key, key, 0.0, False, attn_mask=bias, scale=SCALE)
        right = torch.allclose(out[..., :2, :], query[..., :2, :]) and torch.allclose(total[..., :2].to(bias.dtype), expected)
        right &= bool(out.isfinite().all()) and not out[..., 2, :].any()
        out, total = _forward(query, key, key, 0.0, False, attn_mask=None, scale=SCALE)
        everything = torch.full_like(total, math.log(1100) + 2.0 * SCALE, dtype=bias.dtype)
        right &= torch.allclose(out, query) and torch.allclose(total.to(bias.dtype), everything)
        total[..., 2] = float("inf")
        grads = _backward(out, query, key, key, out, total, 0.0, False, attn_mask=None, scale=SCALE)
    except (TypeError, RuntimeError):
        return False
    return right and all(bool(x.isfinite().all()) for x in (out, *grads))


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


@lru_cache(maxsize=None)
def _say(reason: str) -> None:
    logger.info("attention is computed step by step, without a fused kernel: %s", reason)


def _row(row: int, heads: Tensor, slots: slice = slice(None)) -> Tensor:
    return heads[row : row + 1, :, slots]


def attend_steady(query: Tensor, key: Tensor, value: Tensor, *, counts: Sequence[int]) -> Tuple[Tensor, Tensor]:
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


def attend_with_bias(
    query: Tensor, key: Tensor, value: Tensor, *, sight: Sight, held: Sequence[int]
) -> Tuple[Tensor, Tensor]:
    """Attention to candidates where they are, whatever the queries see of them.

    Args:
        query: [B, K, T, d]; its products are exponents to base 2.
        key, value: [B, K, S, d].
        sight: of the candidates; all are memories and none is compressed.
        held: how many of the candidates each row has, its last ones.
    Returns:
        as :func:`attend_steady`, with the soft mask.
    """
    out, total = _nothing_yet(query)
    heads, size = sight.left.shape[1:]
    for row, count in enumerate(held):
        slots = slice(size - count, size)
        step = max(1, BIAS_SIZE // max(1, heads * count))
        for first in range(0, query.size(2) if count else 0, step):
            queries = slice(first, min(first + step, query.size(2)))
            bias = sight.of(slice(row, row + 1), slots).bias(queries.start, queries.stop).mul_(SCALE)
            memories = (_row(row, heads, slots) for heads in (key, value))
            some, sums = _forward(_row(row, query, queries), *memories, 0.0, False, attn_mask=bias, scale=SCALE)
            # Where a query sees nothing, the kernel has 0.
            nothing = bias.amax(dim=-1) == float("-inf")
            out[row : row + 1, :, queries] = some
            total[row : row + 1, :, queries] = sums.to(bias.dtype).masked_fill_(nothing, float("-inf"))
    return out, total


def steady_gradients(
    grad_out: Tensor,
    tensors: Tuple[Tensor, Tensor, Tensor],
    outcome: Tuple[Tensor, Tensor],
    *,
    counts: Sequence[int],
) -> Tuple[Tensor, Tensor, Tensor]:
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
    grads = (torch.empty_like(query), *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (key, value)))
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


def _nothing_yet(query: Tensor) -> Tuple[Tensor, Tensor]:
    """What attention to nothing gives."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.zeros_like(query), query.new_full(query.shape[:3], float("-inf"), dtype=dtype)
