"""Attention with a soft mask in a few vectorised lines: the document of the operation.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S keys (memories, then the block), d width of a
head, P positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_expire.modules.visibility import Visibility


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
    """Softmax of s + log m over the visible keys, applied to their values.

    For query t and key i, with m the soft mask of section 4.1 and p(n) the embedding of position n::

        s_ti = (q_t . k_i + q_t . p(t - i)) / sqrt(d)        p(n) = 0 for n > P
        m_ti = clamp(1 + (e_i - (t - i)) / R, 0, 1)          m_ti = 0 outside of the key's window
        a_ti = m_ti exp(s_ti) / sum_j m_tj exp(s_tj) = softmax(s_t + log m_t)_i
        out_t = sum_i a_ti v_i                               0 if m_t = 0

    The gradient of a span comes from the ramp alone, where 0 < m < 1. Mask and softmax are computed in float32 or
    better.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d].
        value: [B, K, S, d].
        visibility: windows, soft masks and positions of the S keys for the T queries; its span [B, H, S] gets a
            gradient.
        position: [P, d], row n - 1 is p(n).
        counts: not needed here; see :func:`fairseq_expire.modules.attention.attend`.
        dropout: share of the probabilities a dropped.
    Returns:
        [B, K, T, d].
    """
    block, width = query.shape[2:]
    mask = visibility.to(torch.promote_types(query.dtype, torch.float32)).soft_mask(0, block)  # [B, H, T, S]
    unseen = mask == 0
    # Unseen keys get log 1 first: the gradient of log 0 is NaN.
    log_mask = mask.masked_fill(unseen, 1).log().masked_fill(unseen, float("-inf"))

    index = visibility.position_index(0, block).unsqueeze(1)  # [B, 1, T, S]
    placed = (index >= 1) & (index <= position.size(0))
    by_index = query @ position.to(query.dtype).t()  # [B, K, T, P]
    row = (index - 1).masked_fill(~placed, 0).expand(-1, query.size(1), -1, -1)
    by_position = by_index.gather(-1, row).masked_fill(~placed, 0)  # [B, K, T, S]

    scores = (query @ key.transpose(-1, -2) + by_position) * width**-0.5
    logits = scores.to(mask.dtype) + log_mask
    # Unmask the rows of queries that see nothing, since a softmax over -inf is NaN; their probabilities are zeroed.
    sees_nothing = unseen.all(dim=-1, keepdim=True)
    probabilities = logits.masked_fill(sees_nothing, 0).softmax(dim=-1).masked_fill(sees_nothing, 0)
    return F.dropout(probabilities, dropout).to(value.dtype) @ value
