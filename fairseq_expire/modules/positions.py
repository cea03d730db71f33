"""Scores that depend on the distance between query and candidate, q_t . p(t - i), for one piece of attention.

Size legend: n rows, K heads, Q queries of the piece, P reach of positions, d width of a head.

Only distances 1 ... P have a position. A block's own tokens stand at every step, so their scores lie on diagonals of the
[Q, P] product and a strided view picks them; memories have gaps where others expired, and are looked up one by one.
"""

from dataclasses import dataclass
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .pieces import Piece


@dataclass(frozen=True)
class Reach:
    """Which candidates of a piece lie within P steps of one of its queries.

    Args:
        memories: how many of the youngest memories may.
        own: the first of the block's tokens that does.
        index: [n, Q, memories] int64, column of the [Q, P + Q + 1] table for each of those memories; P (a zero) if it is
            too far.
    """

    memories: int
    own: int
    index: Tensor


def reach_of(piece: Piece, age: Tensor, position_range: int) -> Reach:
    """``age``: [n, S] of the piece's rows and candidates, oldest first; the last are the block's up to ``piece.last``."""
    memories = min(piece.memory, max(0, position_range - piece.first))
    end = age.size(1) - piece.last
    steps = torch.arange(piece.first, piece.last, device=age.device).view(1, -1, 1)
    distance = age[:, end - memories : end].unsqueeze(1) + steps
    index = torch.where(distance <= position_range, position_range - distance, position_range)
    return Reach(memories, max(0, piece.first - position_range), index)


def _diagonals(table: Tensor, piece: Piece, own: int) -> Tensor:
    """[n, K, Q, P + Q + 1] -> [n, K, Q, last - own], a view: for each query the columns of the tokens own ... last - 1.

    Column P - n holds distance n. One query on, a token is one step further back, so its column is one to the left: in
    memory, always a row less one column on. What lies out of reach or in the future falls on the zeros behind column P.
    """
    rows, heads, queries, width = table.shape
    start = width - queries - 1 - piece.first + own
    return table.as_strided(
        (rows, heads, queries, piece.last - own),
        (table.stride(0), table.stride(1), width - 1, 1),
        table.storage_offset() + start,
    )


def add_position_scores(scores: Tensor, query: Tensor, from_far: Tensor, piece: Piece, reach: Reach) -> None:
    """Adds q_t . p(t - i) to the scores, in place.

    Args:
        scores: [n, K, Q, S] of the piece, the block's tokens last.
        query: [n, K, Q, d].
        from_far: [P, d], the embeddings of the distances P ... 1.
    """
    table = F.pad(torch.matmul(query, from_far.t()), (0, query.size(2) + 1))
    scores[..., scores.size(-1) - (piece.last - reach.own) :] += _diagonals(table, piece, reach.own)
    if reach.memories:
        index = reach.index.unsqueeze(1).expand(-1, table.size(1), -1, -1)
        end = scores.size(-1) - piece.last
        scores[..., end - reach.memories : end] += table.gather(-1, index)


def position_gradients(
    grad_scores: Tensor, query: Tensor, from_far: Tensor, piece: Piece, reach: Reach
) -> Tuple[Tensor, Tensor]:
    """The gradients of :func:`add_position_scores`: of the query [n, K, Q, d] and of ``from_far`` [P, d]."""
    rows, heads, queries, _ = query.shape
    table = grad_scores.new_zeros(rows, heads, queries, from_far.size(0) + queries + 1)
    own = piece.last - reach.own
    _diagonals(table, piece, reach.own).copy_(grad_scores[..., grad_scores.size(-1) - own :])
    if reach.memories:
        index = reach.index.unsqueeze(1).expand(-1, heads, -1, -1)
        end = grad_scores.size(-1) - piece.last
        table.scatter_(-1, index, grad_scores[..., end - reach.memories : end])
    table = table[..., : from_far.size(0)]
    return torch.matmul(table, from_far), torch.einsum("nkqp,nkqd->pd", table, query)
