"""Scores that depend on the distance between query and candidate, q_t . p(t - i), for one piece of attention.

Size legend: n rows, K heads, Q queries of the piece, P reach of positions, d width of a head, W at least P + Q + 1.

Only distances 1 ... P have a position, so the products of the queries with all of them are a table [Q, P]. One query on, a
candidate is one step further back, so its scores lie on a diagonal: read with rows that are one shorter, the table has them in
one column. At least Q + 1 columns of zeros behind the table take what lies out of reach or in the future; no product needs them.
"""

from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor

from .pieces import Piece, Scratch, aligned
from .soft_mask import Sight


@dataclass(frozen=True)
class Reach:
    """Which candidates of a piece lie within P steps of one of its queries, and where in the table they are.

    Args:
        position_range: P.
        memories: how many of the memories may, the last ones; there may be others among them.
        columns: [n, 1, 1 or Q, memories] int64, the column of each of those memories.
        own: the first of the block's tokens that does.
        own_column: its column; the tokens after it have the next ones.
    """

    position_range: int
    memories: int
    columns: Tensor
    own: int
    own_column: int


def reach_of(piece: Piece, sight: Sight, position_range: int, memories: int) -> Reach:
    """
    Args:
        piece: what is computed.
        sight: of the piece's rows and candidates; the last are the block's up to ``piece.last``, in their order.
        position_range: P.
        memories: how many of the memories, the last ones, may lie within reach.
    """
    queries = piece.last - piece.first
    end = sight.age.size(1) - piece.last
    if sight.compressed is None:
        # Column P - n of the first query's row holds distance n.
        columns = (position_range - piece.first) - sight.age[:, None, end - memories : end]  # [n, 1, memories]
    else:
        within = sight.of(slice(None), slice(end - memories, end))
        distance = within.distance(piece.first, piece.last)  # [n, Q, memories]
        compressed = within.compressed.slots.unsqueeze(1)
        back = torch.where(compressed, within.compressed.positions(distance), distance)
        # A compressed memory follows on the last state, and none of them is where it is not seen: no two share a position.
        unseen = (compressed == (distance <= within.compressed.after)) | (back > position_range)
        # A compressed memory does not move with each query along a diagonal: it has a column for each.
        diagonal = torch.arange(queries, device=back.device).unsqueeze(1)
        columns = (position_range - back).add_(diagonal).masked_fill_(unseen, -1)
    columns = columns.masked_fill(columns < 0, position_range + queries)
    own = max(0, piece.first - position_range)
    return Reach(position_range, memories, columns.unsqueeze(1), own, position_range - piece.first + own)


def _by_candidate(table: Tensor) -> Tensor:
    """The table [n, K, Q, W] as a view in which a column is a candidate."""
    rows, heads, queries, width = table.shape
    strides = (*table.stride()[:2], width - 1, 1)
    return table.as_strided((rows, heads, queries, width), strides, table.storage_offset())


def _parts(scores: Tensor, piece: Piece, reach: Reach) -> Tuple[Tensor, Tensor]:
    """Of [n, K, Q, S]: the columns of the memories within reach, and of the block's own tokens."""
    end = scores.size(-1) - piece.last
    return scores[..., end - reach.memories : end], scores[..., end + reach.own :]


def put_position_scores(
    scores: Tensor, shared: Tensor, query: Tensor, positions: Tensor, piece: Piece, reach: Reach, scratch: Scratch
) -> None:
    """Sets the scores to q_t . p(t - i), or to 0 where there is no position, and what all heads share.

    Args:
        scores: [n, K, Q, S] of the piece, the block's tokens last.
        shared: [n, 1 or K, Q, S], added.
        query: [n, K, Q, d].
        positions: [P, d] of the distances P ... 1.
    """
    rows, heads, queries, width = query.shape
    reached = reach.position_range
    table = scratch.take("table", (rows, heads, queries, aligned(reached + queries + 1)), query.dtype)
    torch.mm(query.reshape(-1, width), positions.t(), out=table.flatten(0, 2)[:, :reached])
    table[..., reached:] = 0
    by_candidate = _by_candidate(table)
    memories, own = _parts(scores, piece, reach)
    end = scores.size(-1) - piece.last
    for unplaced in (slice(end - reach.memories), slice(end, end + reach.own)):
        scores[..., unplaced] = shared[..., unplaced]
    own_scores = by_candidate[..., reach.own_column : reach.own_column + own.size(-1)]
    torch.add(own_scores, shared[..., end + reach.own :], out=own)
    if reach.memories:
        where = reach.columns.expand(rows, heads, queries, -1)
        if memories.dtype == table.dtype:
            torch.gather(by_candidate, -1, where, out=memories)
        else:
            memories.copy_(by_candidate.gather(-1, where))
        memories += shared[..., end - reach.memories : end]


def position_gradients(
    grad_scores: Tensor, query: Tensor, positions: Tensor, piece: Piece, reach: Reach, scratch: Scratch
) -> Tuple[Tensor, Tensor]:
    """The gradients of :func:`put_position_scores`: of the query [n, K, Q, d], and of ``positions`` [P, d]."""
    rows, heads, queries, width = query.shape
    reached = reach.position_range
    table = scratch.take("grad_table", (rows, heads, queries, aligned(reached + queries + 1)), query.dtype).zero_()
    by_candidate = _by_candidate(table)
    memories, own = _parts(grad_scores, piece, reach)
    by_candidate[..., reach.own_column : reach.own_column + own.size(-1)] = own
    if reach.memories:
        by_candidate.scatter_(-1, reach.columns.expand(rows, heads, queries, -1), memories)
    table = table.flatten(0, 2)[:, :reached]
    return torch.mm(table, positions).view(query.shape), torch.mm(table.t(), query.reshape(-1, width))
