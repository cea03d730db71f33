"""Attention of a block over its memory: the hot path, in one place.

Size legend: B rows, K heads, T queries, S candidates (memory and block), d width of a head, P reach of positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor,
    distance: Tensor,
    position: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """softmax((q_t . k_i + q_t . p(t - i)) / sqrt(d) + bias) over the candidates, applied to their values.

    A soft mask m enters as the bias log m: m * softmax(s) / sum = softmax(s + log m). A query whose every bias is -inf
    attends to nothing and gets zeros.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d].
        value: [B, K, S, d].
        bias: [B, 1 or K, T, S], -inf where a query sees nothing.
        distance: [B, T, S] int64, t - i in steps. Candidates stand in time order, oldest first; empty slots come first.
        position: [P, d], row n - 1 is p(n), the embedding of distance n; older candidates are scored without one.
        dropout: share of attention probabilities dropped.
    Returns:
        [B, K, T, d].
    """
    batch, heads, block, _ = query.shape
    reach = position.size(0)
    # Only the youngest memories and the block itself lie within P steps of a query: the rest costs no position score.
    split = max(0, key.size(2) - reach - block)
    near = distance[:, None, :, split:]  # [B, 1, T, W]
    # A column of zeros stands for every distance that has no position.
    by_distance = torch.matmul(query, F.pad(position, (0, 0, 0, 1)).t()) * query.size(-1) ** -0.5  # [B, K, T, P + 1]
    index = torch.where((near >= 1) & (near <= reach), near - 1, reach).expand(batch, heads, block, -1)
    scored = by_distance.gather(-1, index)  # [B, K, T, W]

    bias = bias.to(scored.dtype).expand(batch, heads, block, -1)
    bias = torch.cat([bias[..., :split], bias[..., split:] + scored], dim=-1)  # [B, K, T, S]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
