"""Attention by a fused kernel of PyTorch: with any bias, and over far memories, those out of reach of positions.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates (far memories, in Far), d width of a head.

Scores of far memories are plain products and the soft mask is a bias (the equation in attention.py), so the kernel serves in
backward, too; row by row, since rows hold different numbers. It gives no gradient of the bias; only what is on its
ramp has one, and that little is computed again by itself.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Iterator, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .soft_mask import Sight

logger = logging.getLogger(__name__)

# Floats of the bias that are made at once, and the fewest queries that they are made for.
BIAS_SIZE = 1 << 22
FEWEST_QUERIES = 32
# Queries for which ramps are looked at together: the more, the more memories are on the ramp of one of them.
RAMP_QUERIES = 128

_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@lru_cache(maxsize=None)
def _kernel_works(dtype: torch.dtype) -> bool:
    """Whether PyTorch's kernel is there, takes a bias for each row and head, returns the logarithm of the sum, and makes no NaN of
    a query that sees little or nothing."""
    with torch.device("cpu"):
        query, key = torch.full((2, 2, 3, 8), 0.5, dtype=dtype), torch.full((2, 2, 1100, 8), 0.5, dtype=dtype)
        bias = torch.full((2, 2, 3, 1100), float("-inf"), dtype=torch.promote_types(dtype, torch.float32))
        # The first query sees two, the second one, the third nothing.
        bias[..., 0, -2:] = torch.arange(4.0).view(2, 2, 1).to(bias.dtype)
        bias[..., 1, -1] = 0.0
    expected = torch.logsumexp(bias[..., :2, :] + 2.0, dim=-1)
    try:
        out, total = _forward(query, key, key, 0.0, False, attn_mask=bias, scale=1.0)
        right = torch.allclose(out[..., :2, :], query[..., :2, :]) and torch.allclose(total[..., :2].to(bias.dtype), expected)
        total[..., 2] = float("inf")
        grads = _backward(out, query, key, key, out, total, 0.0, False, attn_mask=bias, scale=1.0)
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


def attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor]:
    """
    Args:
        query: [B, K, T, d], scaled.
        key, value: [B, K, S, d].
        bias: [B, 1 or K, T, S].
    Returns:
        [B, K, T, d], and [B, K, T], the logarithm of the sum of exp(s + bias); -inf for a query that sees nothing, where
        the kernel has 0, and then the first is anything finite.
    """
    out, total = _forward(query, key, value, 0.0, False, attn_mask=bias, scale=1.0)
    return out, total.to(bias.dtype).masked_fill_(bias.amax(dim=-1) == float("-inf"), float("-inf"))


class FarGradients(NamedTuple):
    """Where gradients are added up; all but the query's are of far memories only."""

    query: Tensor
    key: Tensor
    value: Tensor
    left: Tensor


class _Part(NamedTuple):
    """Some queries of one row with the memories that the row holds."""

    row: slice
    queries: slice
    slots: slice


@dataclass(frozen=True)
class Far:
    """The far memories of a block.

    Args:
        query: [B, K, T, d], scaled.
        key, value: [B, K, S, d].
        sight: what the queries see of them; there are no compressed memories among them.
        held: how many memories each row holds, its youngest slots.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sight: Sight
    held: Sequence[int]

    def _parts(self) -> Iterator[_Part]:
        _, heads, slots = self.sight.left.shape
        block = self.query.size(2)
        for row, count in enumerate(self.held):
            step = max(FEWEST_QUERIES, BIAS_SIZE // max(1, heads * count))
            for first in range(0, block if count else 0, step):
                yield _Part(slice(row, row + 1), slice(first, min(first + step, block)), slice(slots - count, slots))

    def _bias(self, part: _Part) -> Tensor:
        return self.sight.of(part.row, part.slots).bias(part.queries.start, part.queries.stop)

    def attend(self) -> Tuple[Tensor, Tensor]:
        """What they alone would give, as :func:`attend_fused`."""
        out = torch.zeros_like(self.query)
        total = self.sight.left.new_full(self.query.shape[:3], float("-inf"))
        for part in self._parts():
            row, queries, slots = part
            heads = self.query[row, :, queries], self.key[row, :, slots], self.value[row, :, slots]
            out[row, :, queries], total[row, :, queries] = attend_fused(*heads, self._bias(part))
        return out, total

    def add_gradients(
        self, into: FarGradients, grad_out: Tensor, *, out: Tensor, total: Tensor, with_spans: bool
    ) -> None:
        """Their share in the backward pass of attention over all candidates.

        Args:
            into: gradients so far.
            grad_out: [B, K, T, d] of the output of that attention.
            out: [B, K, T, d], that output.
            total: [B, K, T], the logarithm of the sum over all candidates; inf for queries that see none.
            with_spans: whether the gradient of ``left`` is wanted.
        """
        for part in self._parts():
            row, queries, slots = part
            bias, grad = self._bias(part), grad_out[row, :, queries]
            heads = self.query[row, :, queries], self.key[row, :, slots], self.value[row, :, slots]
            outcome = out[row, :, queries], total[row, :, queries].contiguous()
            grads = _backward(grad, *heads, *outcome, 0.0, False, attn_mask=bias, scale=1.0)
            into.query[row, :, queries] += grads[0]
            into.key[row, :, slots] += grads[1]
            into.value[row, :, slots] += grads[2]
            if not with_spans:
                continue
            offset = (grad.to(into.left.dtype) * outcome[0]).sum(dim=-1, keepdim=True)
            for first in range(0, bias.size(2), RAMP_QUERIES):
                some = slice(first, first + RAMP_QUERIES)
                _add_ramp_gradient(
                    into.left[row, :, slots],
                    self.sight.of(row, slots),
                    (grad[:, :, some], heads[0][:, :, some], *heads[1:]),
                    offset[:, :, some],
                    outcome[1][:, :, some],
                    first=queries.start + first,
                )


def _add_ramp_gradient(
    into: Tensor, sight: Sight, tensors: Tuple[Tensor, ...], offset: Tensor, total: Tensor, *, first: int
) -> None:
    """``into`` [1, H, S]; ``tensors`` are gradient, query, key and value of queries ``first`` ... of one row."""
    grad, query, key, value = tensors
    last = first + query.size(2)
    on_ramp = ((sight.left > first) & (sight.left < last - 1 + sight.ramp)).any(dim=1).squeeze(0).nonzero().squeeze(1)
    key, value, sight = key[:, :, on_ramp], value[:, :, on_ramp], sight.only(on_ramp)
    # In the type of the total, as the kernel has it inside.
    grad, query, key, value = (tensor.to(into.dtype) for tensor in (grad, query, key, value))
    scores = torch.matmul(query, key.transpose(-1, -2))  # [1, K, Q, number on the ramp]
    scores += sight.bias(first, last)
    probabilities = scores.sub_(total.unsqueeze(-1)).exp_()
    grad_scores = torch.matmul(grad, value.transpose(-1, -2)).sub_(offset).mul_(probabilities)
    if into.size(1) == 1:
        grad_scores = grad_scores.sum(dim=1, keepdim=True)
    grad_left = (grad_scores * sight.slope(first, last)).sum(dim=2)
    into[:, :, on_ramp] += grad_left
