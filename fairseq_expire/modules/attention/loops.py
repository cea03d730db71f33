"""The equations as loops: slow and plain. The tests compare the reference to them.

Size legend: B rows, K heads, T queries, S keys, d width of a head, P positions.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def soft_mask(span: Tensor, distance: int, ramp: float) -> Tensor:
    """m = clamp(1 + r / R, 0, 1) with r = e - (t - i), of one memory for one query (section 4.1)."""
    remaining = span - distance
    if remaining >= 0:
        return torch.ones_like(span)
    if remaining <= -ramp:
        return torch.zeros_like(span)
    return 1 + remaining / ramp


class SpanView(NamedTuple):
    """Soft masks and price of the spans of all keys for all queries.

    Args:
        mask: [B, T, S]; zero for keys that are expired or not in the past of the query.
        penalty: [B], the sum of e_i / R over all pairs on the ramp.
    """

    mask: Tensor
    penalty: Tensor


def expire_span_view(span: Tensor, distance: Tensor, *, ramp: float) -> SpanView:
    """Computes the soft masks of all keys for all queries, and the price of the spans.

    Args:
        span: [B, S], e_i in steps.
        distance: [B, T, S] int64, t - i.
        ramp: R.
    """
    batch, block, slots = distance.shape
    rows, penalties = [], []
    for b in range(batch):
        penalty = span.new_zeros(())
        for t in range(block):
            for i in range(slots):
                steps = int(distance[b, t, i])
                mask = soft_mask(span[b, i], steps, ramp) if steps >= 1 else span.new_zeros(())
                if 0 < mask < 1:
                    penalty = penalty + span[b, i] / ramp
                rows.append(mask)
        penalties.append(penalty)
    return SpanView(torch.stack(rows).view(batch, block, slots), torch.stack(penalties))


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, index: Tensor, position: Tensor) -> Tensor:
    """m * exp(s) / sum(m * exp(s)) over the keys, applied to their values; zeros where a query sees nothing.

    Takes the soft mask itself where other code takes its logarithm as a bias.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d].
        value: [B, K, S, d].
        mask: [B, T, S], m.
        index: [B, T, S] int64, the position of each key relative to each query, from 1 on.
        position: [P, d], row n - 1 is p(n).
    Returns:
        [B, K, T, d].
    """
    batch, heads, block, width = query.shape
    out = []
    for b in range(batch):
        for k in range(heads):
            for t in range(block):
                total = query.new_zeros(())
                mixed = query.new_zeros(width)
                for i in range(key.size(2)):
                    if mask[b, t, i] == 0:
                        continue
                    n = int(index[b, t, i])
                    score = query[b, k, t] @ key[b, k, i]
                    if n <= position.size(0):
                        score = score + query[b, k, t] @ position[n - 1]
                    weight = mask[b, t, i] * torch.exp(score / math.sqrt(width))
                    total = total + weight
                    mixed = mixed + weight * value[b, k, i]
                out.append(mixed / total if total > 0 else mixed)
    return torch.stack(out).view(batch, heads, block, width)
