"""Scores that depend on the distance between query and candidate, q_t . p(t - i), for one piece of attention.

Size legend: n rows, K heads, Q queries of the piece, P reach of positions, d width of a head, W at least P + Q + 1.

Only distances 1 ... P have a position, so the products of the queries with all of them are a table [Q, P]. One query on, a
candidate is one step further back, so its scores lie on a diagonal: read with rows that are one shorter, the table has them in
one column. At least Q + 1 columns of zeros behind the table take what lies out of reach or in the future; no product needs them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_expire.modules.attention.tiles import Tile, Workspace, aligned
from fairseq_expire.modules.visibility import Visibility


@dataclass(frozen=True)
class RelativePositions:
    """Which candidates of a piece lie within P steps of one of its queries, and where in the table they are.

    Args:
        position_range: P.
        memories: how many there are from the first memory that does to the last that does; others may be among them.
        after: how many memories stand between these and the block.
        columns: [n, 1, 1 or Q, memories] int64, the column of each of those memories.
        own: the first of the block's tokens that does.
        own_column: its column; the tokens after it have the next ones.
        distinct: no two of the memories have one position.
    """

    position_range: int
    memories: int
    after: int
    columns: Tensor
    own: int
    own_column: int
    distinct: bool


def relative_positions(
    piece: Tile, visibility: Visibility, position_range: int, *, memories: int, after: int
) -> RelativePositions:
    """
    Args:
        piece: what is computed.
        visibility: of the piece's rows and candidates; the last are the block's up to ``piece.last``, in their order.
        position_range: P.
        memories: how many there are from the first that may lie within reach to the block.
        after: how many of these stand behind the last that may.
    """
    queries = piece.last - piece.first
    end = visibility.age.size(1) - piece.last
    placed = slice(end - memories, end - after)
    if visibility.min_distance is None:
        # Column P - n of the first query's row holds distance n.
        columns = (position_range - piece.first) - visibility.age[:, None, placed]  # [n, 1, memories]
    else:
        index = visibility.select(slice(None), placed).position_index(piece.first, piece.last)  # [n, Q, memories]
        # A key that stands for several states does not move with each query along a diagonal: it has a column for each.
        diagonal = torch.arange(queries, device=index.device).unsqueeze(1)
        columns = (position_range - index + diagonal).masked_fill_((index < 1) | (index > position_range), -1)
    columns = columns.masked_fill(columns < 0, position_range + queries)
    own = max(0, piece.first - position_range)
    return RelativePositions(
        position_range=position_range,
        memories=memories - after,
        after=after,
        columns=columns.unsqueeze(1),
        own=own,
        own_column=position_range - piece.first + own,
        distinct=visibility.min_distance is None,
    )


def _by_candidate(table: Tensor) -> Tensor:
    """The table [n, K, Q, W] as a view in which a column is a candidate."""
    rows, heads, queries, width = table.shape
    strides = (*table.stride()[:2], width - 1, 1)
    return table.as_strided((rows, heads, queries, width), strides, table.storage_offset())


def _parts(candidates: int, piece: Tile, reach: RelativePositions) -> tuple[slice, slice]:
    """Of S candidates, the memories within reach, and the block's own tokens."""
    end = candidates - piece.last
    return slice(end - reach.after - reach.memories, end - reach.after), slice(end + reach.own, candidates)


def put_position_scores(
    scores: Tensor,
    shared: Tensor,
    query: Tensor,
    positions: Tensor,
    piece: Tile,
    reach: RelativePositions,
    scratch: Workspace,
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
    placed, own = _parts(scores.size(-1), piece, reach)
    for unplaced in (slice(0, placed.start), slice(placed.stop, own.start)):
        if unplaced.start < unplaced.stop:
            scores[..., unplaced] = shared[..., unplaced]
    own_scores = by_candidate[..., reach.own_column : reach.own_column + own.stop - own.start]
    torch.add(own_scores, shared[..., own], out=scores[..., own])
    if reach.memories:
        memories, where = scores[..., placed], reach.columns.expand(rows, heads, queries, -1)
        if memories.dtype == table.dtype:
            torch.gather(by_candidate, -1, where, out=memories)
        else:
            memories.copy_(by_candidate.gather(-1, where))
        memories += shared[..., placed]


def position_gradients(
    grad_scores: Tensor, query: Tensor, positions: Tensor, piece: Tile, reach: RelativePositions, scratch: Workspace
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`put_position_scores`: of the query [n, K, Q, d], and of ``positions`` [P, d]."""
    rows, heads, queries, width = query.shape
    reached = reach.position_range
    table = scratch.take("grad_table", (rows, heads, queries, aligned(reached + queries + 1)), query.dtype).zero_()
    by_candidate = _by_candidate(table)
    placed, own = _parts(grad_scores.size(-1), piece, reach)
    by_candidate[..., reach.own_column : reach.own_column + own.stop - own.start] = grad_scores[..., own]
    if reach.memories:
        where, grad = reach.columns.expand(rows, heads, queries, -1), grad_scores[..., placed]
        if reach.distinct:
            by_candidate.scatter_(-1, where, grad)
        else:
            # A hidden key may have the position of a visible one; its own gradient is zero.
            by_candidate.scatter_add_(-1, where, grad)
    table = table.flatten(0, 2)[:, :reached]
    return torch.mm(table, positions).view(query.shape), torch.mm(table.t(), query.reshape(-1, width))
