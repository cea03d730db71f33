"""Attention by PyTorch's fused kernel for CPUs, over fully visible memories without a position.

Size legend: B rows, K heads, T queries, S keys, d width of a head.

The scores of these memories are plain products, so the kernel needs no mask. It is called row by row, since rows have
different numbers of such memories.
"""

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Products are exponents to base 2.
SCALE = math.log(2)

# Not public, so they may be missing or have other arguments: see _kernel_works.
_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@cache
def _kernel_works(dtype: torch.dtype) -> bool:
    """Tries PyTorch's kernel.

    It has to work without a mask, return the log-sum-exp of each query, and accept infinity for that in its backward.
    """
    with torch.device("cpu"):
        query, key = torch.full((2, 2, 3, 8), 0.5, dtype=dtype), torch.full((2, 2, 1100, 8), 0.5, dtype=dtype)
    try:
        out, log_sum = _forward(query, key, key, 0.0, False, attn_mask=None, scale=SCALE)
        expected = torch.full_like(
            log_sum, math.log(1100) + 2.0 * SCALE, dtype=torch.promote_types(dtype, torch.float32)
        )
        right = torch.allclose(out, query) and torch.allclose(log_sum.to(expected.dtype), expected)
        log_sum[..., 2] = float("inf")
        grads = _backward(out, query, key, key, out, log_sum, 0.0, False, attn_mask=None, scale=SCALE)
    except (TypeError, RuntimeError):
        return False
    return right and all(bool(x.isfinite().all()) for x in grads)


def has_fused_kernel(query: Tensor, dropout: float) -> bool:
    """Returns True if the functions below can be called; logs each reason against it once."""
    if query.device.type != "cpu":
        reason = f"it is for CPUs, not for {query.device.type}"
    elif dropout:
        reason = "it drops no attention probabilities"
    elif not _kernel_works(query.dtype):
        reason = f"PyTorch {torch.__version__} has none that works here"
    else:
        return True
    _log_once(reason)
    return False


@cache
def _log_once(reason: str) -> None:
    logger.info("attention is computed without PyTorch's fused kernel: %s", reason)


def _row(row: int, heads: Tensor, keys: slice = slice(None)) -> Tensor:
    return heads[row : row + 1, :, keys]


class FusedOutput(NamedTuple):
    """Attention to some of the keys.

    Args:
        out: [B, K, T, d], the output.
        log_sum: [B, K, T], the log-sum-exp of each query (log of the softmax denominator); -inf for queries that see
            none of these keys.
    """

    out: Tensor
    log_sum: Tensor


class FusedGradients(NamedTuple):
    """Gradients that come from some of the keys.

    Args:
        query: [B, K, T, d].
        key, value: [B, K, S, d]; 0 for the other keys.
    """

    query: Tensor
    key: Tensor
    value: Tensor


def attend_fused(query: Tensor, key: Tensor, value: Tensor, *, counts: Sequence[int]) -> FusedOutput:
    """Computes attention to keys that all queries see with a mask of 1.

    Args:
        query: [B, K, T, d], scaled so that its products are exponents to base 2.
        key, value: [B, K, S, d].
        counts: number of these keys in each row, its first ones.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    out, log_sum = torch.zeros_like(query), query.new_full(query.shape[:3], float("-inf"), dtype=dtype)
    for row, count in enumerate(counts):
        if count:
            memories = (_row(row, heads, slice(count)) for heads in (key, value))
            part = _forward(_row(row, query), *memories, 0.0, False, attn_mask=None, scale=SCALE)
            out[row : row + 1], log_sum[row : row + 1] = part
    return FusedOutput(out, log_sum)


def fused_gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    out: Tensor,
    log_sum: Tensor,
    counts: Sequence[int],
) -> FusedGradients:
    """Computes the gradients that come from the keys of :func:`attend_fused`, in attention to these and other keys.

    Args:
        grad_out: [B, K, T, d], of the output of that attention.
        query, key, value: as there.
        out: [B, K, T, d], that output.
        log_sum: [B, K, T], the log-sum-exp of each query over all keys; inf for queries that see none.
        counts: as there.
    """
    if not any(counts):
        return FusedGradients(torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value))
    grad_query = torch.empty_like(query)
    grad_key, grad_value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (key, value))
    for row, count in enumerate(counts):
        meant, others = slice(count), slice(count, None)
        for gradient in (grad_key, grad_value):
            _row(row, gradient, others).zero_()
        if not count:
            _row(row, grad_query).zero_()
            continue
        heads = _row(row, query), _row(row, key, meant), _row(row, value, meant)
        outcome = (_row(row, tensor).contiguous() for tensor in (out, log_sum))
        parts = _backward(_row(row, grad_out), *heads, *outcome, 0.0, False, attn_mask=None, scale=SCALE)
        _row(row, grad_query).copy_(parts[0])
        for gradient, part in zip((grad_key, grad_value), parts[1:]):
            _row(row, gradient, meant).copy_(part)
    return FusedGradients(grad_query, grad_key, grad_value)
