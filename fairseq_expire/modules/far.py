"""Attention over memories that are out of reach of positions, by a fused kernel of PyTorch.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S far memories, d width of a head.

Their scores are plain products and the soft mask is a bias (the equation in attention.py), so a fused kernel serves, row by row
since rows hold different numbers. It gives no gradient of the bias; only what is on its ramp has one, and that little is
computed again by itself.
"""

import logging
from functools import lru_cache
from typing import Iterator, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .soft_mask import soft_mask_bias, soft_mask_slope

logger = logging.getLogger(__name__)

# Floats of the bias that are made at once, and the fewest queries that they are made for.
BIAS_SIZE = 1 << 22
FEWEST_QUERIES = 32
# Queries for which ramps are looked at together: the more, the more memories are on the ramp of one of them.
RAMP_QUERIES = 128

_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@lru_cache(maxsize=None)
def _kernel_works() -> bool:
    """Whether PyTorch's kernel is there, takes a bias, and makes no NaN of a query that sees little or nothing."""
    query, key = torch.ones(1, 1, 2, 8), torch.ones(1, 1, 1100, 8)
    bias = torch.full((1, 1, 2, 1100), float("-inf"))
    bias[..., 0, -1] = 0.0
    try:
        out, total = _forward(query, key, key, 0.0, False, attn_mask=bias, scale=1.0)
        total[..., 1] = float("inf")
        grads = _backward(out, query, key, key, out, total, 0.0, False, attn_mask=bias, scale=1.0)
    except (TypeError, RuntimeError):
        return False
    return torch.equal(out[0, 0, 0], query[0, 0, 0]) and all(bool(x.isfinite().all()) for x in (out, *grads))


def has_fused_kernel(query: Tensor, dropout: float) -> bool:
    """Whether the functions below can be called; says once for each reason why they cannot."""
    if query.device.type != "cpu":
        reason = f"it is for CPUs, not for {query.device.type}"
    elif dropout:
        reason = "it drops no attention probabilities"
    elif not _kernel_works():
        reason = f"PyTorch {torch.__version__} has none that serves"
    else:
        return True
    _say(reason)
    return False


@lru_cache(maxsize=None)
def _say(reason: str) -> None:
    logger.info("attention over old memories is computed step by step, without a fused kernel: %s", reason)


class _Part(NamedTuple):
    """Some queries of one row with the memories that the row holds."""

    row: slice
    queries: slice
    slots: slice


def _parts(held: Sequence[int], left: Tensor, block: int) -> Iterator[_Part]:
    _, heads, slots = left.shape
    for row, count in enumerate(held):
        step = max(FEWEST_QUERIES, BIAS_SIZE // max(1, heads * count))
        for first in range(0, block if count else 0, step):
            yield _Part(slice(row, row + 1), slice(first, min(first + step, block)), slice(slots - count, slots))


def attend_far(
    query: Tensor, key: Tensor, value: Tensor, left: Tensor, *, held: Sequence[int], ramp: float
) -> Tuple[Tensor, Tensor]:
    """What the far memories alone would give.

    Args:
        query: [B, K, T, d], scaled.
        key, value: [B, K, S, d].
        left: [B, H, S], see soft_mask.py.
        held: how many memories each row holds, its youngest slots.
    Returns:
        [B, K, T, d]; and [B, K, T], the logarithm of the sum of R m exp(s) over them, -inf for a query that sees none.
    """
    out = torch.zeros_like(query)
    total = left.new_full(query.shape[:3], float("-inf"))
    for row, queries, slots in _parts(held, left, query.size(2)):
        bias = soft_mask_bias(left[row, :, slots], queries.start, queries.stop, ramp=ramp)
        heads = query[row, :, queries], key[row, :, slots], value[row, :, slots]
        out[row, :, queries], sums = _forward(*heads, 0.0, False, attn_mask=bias, scale=1.0)
        # The kernel calls the sum over nothing 1.
        total[row, :, queries] = torch.where(bias.amax(dim=-1) > float("-inf"), sums.to(total.dtype), float("-inf"))
    return out, total


class FarGradients(NamedTuple):
    """Where the gradients of the arguments of :func:`attend_far` are added up."""

    query: Tensor
    key: Tensor
    value: Tensor
    left: Tensor


def add_far_gradients(
    into: FarGradients,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    left: Tensor,
    *,
    out: Tensor,
    total: Tensor,
    held: Sequence[int],
    ramp: float,
    with_spans: bool,
) -> None:
    """The far memories' share in the backward pass of attention over all candidates.

    Args:
        into: gradients so far.
        grad_out: [B, K, T, d] of the output of that attention.
        query, key, value, left, held, ramp: as for :func:`attend_far`.
        out: [B, K, T, d], that output.
        total: [B, K, T], the logarithm of the sum over all candidates; inf for queries whose far memories do not count.
        with_spans: whether the gradient of ``left`` is wanted.
    """
    total = total.to(left.dtype)
    for row, queries, slots in _parts(held, left, query.size(2)):
        bias = soft_mask_bias(left[row, :, slots], queries.start, queries.stop, ramp=ramp)
        grad, heads = grad_out[row, :, queries], (query[row, :, queries], key[row, :, slots], value[row, :, slots])
        outcome = out[row, :, queries], total[row, :, queries].contiguous()
        grads = _backward(grad, *heads, *outcome, 0.0, False, attn_mask=bias, scale=1.0)
        into.query[row, :, queries] += grads[0]
        into.key[row, :, slots] += grads[1]
        into.value[row, :, slots] += grads[2]
        if with_spans:
            offset = (grad.to(left.dtype) * outcome[0]).sum(dim=-1, keepdim=True)
            for first in range(0, bias.size(2), RAMP_QUERIES):
                some = slice(first, first + RAMP_QUERIES)
                _add_ramp_gradient(
                    into.left[row, :, slots],
                    left[row, :, slots],
                    (grad[:, :, some], heads[0][:, :, some], *heads[1:]),
                    offset[:, :, some],
                    outcome[1][:, :, some],
                    first=queries.start + first,
                    ramp=ramp,
                )


def _add_ramp_gradient(
    into: Tensor, left: Tensor, tensors: Tuple[Tensor, ...], offset: Tensor, total: Tensor, *, first: int, ramp: float
) -> None:
    """``into`` and ``left`` [1, H, S]; ``tensors`` are gradient, query, key and value of queries ``first`` ... of one row."""
    grad, query, key, value = tensors
    last = first + query.size(2)
    on_ramp = ((left > first) & (left < last - 1 + ramp)).any(dim=1).squeeze(0).nonzero().squeeze(1)
    key, value, left = key[:, :, on_ramp], value[:, :, on_ramp], left[:, :, on_ramp]
    scores = torch.matmul(query, key.transpose(-1, -2)).to(left.dtype)  # [1, K, Q, number on the ramp]
    scores += soft_mask_bias(left, first, last, ramp=ramp)
    probabilities = scores.sub_(total.unsqueeze(-1)).exp_()
    grad_scores = torch.matmul(grad, value.transpose(-1, -2)).to(left.dtype).sub_(offset).mul_(probabilities)
    if left.size(1) == 1:
        grad_scores = grad_scores.sum(dim=1, keepdim=True)
    grad_left = (grad_scores * soft_mask_slope(left, first, last, ramp=ramp)).sum(dim=2)
    into[:, :, on_ramp] += grad_left
