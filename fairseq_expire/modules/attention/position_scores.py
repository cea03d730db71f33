"""Scores that depend on the position of a key relative to a query, q_t . p(n), for one tile.

Size legend: n rows, K heads, Q queries of the tile, S keys, P positions, d width of a head, W at least P + Q + 1.

The products of all queries with all positions are a table [Q, P], with position P in column 0 and position 1 in column
P - 1. One query on, a key is one position further back, so its scores lie on a diagonal of the table. With a row stride
that is one smaller, all scores of a key stand in one column. This is the relative shift of Transformer-XL, as a strided
view instead of a copy. At least Q + 1 columns of zeros behind the table serve keys without a position.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_expire.modules.attention.tiles import MemoryRange, Tile, Workspace, aligned
from fairseq_expire.modules.visibility import Visibility


class PositionGradients(NamedTuple):
    """Gradients that come from the scores of positions.

    Args:
        query: [n, K, Q, d].
        positions: [P, d].
    """

    query: Tensor
    positions: Tensor


@dataclass(frozen=True)
class RelativePositions:
    """Columns of a tile's keys in the table.

    Args:
        tile: the tile.
        position_range: P.
        memories: how many memories there are from the first with a position to the last; some between may have none.
        after: how many memories stand between these and the block.
        columns: [n, 1, 1 or Q, memories] int64, the column of each of those memories.
        first_token: the first of the block's tokens with a position.
        token_column: its column; the tokens after it have the next ones.
        distinct: True if no two memories of a row have the same position.
    """

    tile: Tile
    position_range: int
    memories: int
    after: int
    columns: Tensor
    first_token: int
    token_column: int
    distinct: bool

    @classmethod
    def of(cls, tile: Tile, visibility: Visibility, position_range: int, memories: MemoryRange) -> "RelativePositions":
        """Finds the columns.

        Args:
            tile: the tile.
            visibility: of the tile's rows and keys; the last keys are the block's up to ``tile.stop``, in their order.
            position_range: P.
            memories: the memories from the first to the last that may have a position.
        """
        queries = tile.stop - tile.start
        end = visibility.age.size(1) - tile.stop
        placed = slice(end - memories.from_first, end - memories.after_last)
        if visibility.min_distance is None:
            # Column P - n of the first query's row holds distance n.
            columns = (position_range - tile.start) - visibility.age[:, None, placed]  # [n, 1, memories]
        else:
            index = visibility.select(slice(None), placed).position_index(tile.start, tile.stop)  # [n, Q, memories]
            # A key that stands for several states leaves the diagonal: it has a column for each query.
            diagonal = torch.arange(queries, device=index.device).unsqueeze(1)
            columns = (position_range - index + diagonal).masked_fill_((index < 1) | (index > position_range), -1)
        first_token = max(0, tile.start - position_range)
        return cls(
            tile=tile,
            position_range=position_range,
            memories=memories.from_first - memories.after_last,
            after=memories.after_last,
            columns=columns.masked_fill(columns < 0, position_range + queries).unsqueeze(1),
            first_token=first_token,
            token_column=position_range - tile.start + first_token,
            distinct=visibility.min_distance is None,
        )

    def add_scores(self, shared: Tensor, query: Tensor, positions: Tensor, out: Tensor, workspace: Workspace) -> None:
        """Sets ``out`` to ``shared`` + q_t . p(n), without the product where a key has no position.

        Args:
            shared: [n, 1 or K, Q, S].
            query: [n, K, Q, d].
            positions: [P, d], the embeddings of the positions P ... 1.
            out: [n, K, Q, S], the block's tokens last.
            workspace: for the table.
        """
        rows, heads, queries, width = query.shape
        table = self._table("table", query, workspace)
        torch.mm(query.reshape(-1, width), positions.t(), out=table.flatten(0, 2)[:, : self.position_range])
        table[..., self.position_range :] = 0
        by_key = _by_key(table)
        placed, tokens = self._parts(out.size(-1))
        for unplaced in (slice(0, placed.start), slice(placed.stop, tokens.start)):
            if unplaced.start < unplaced.stop:
                out[..., unplaced] = shared[..., unplaced]
        torch.add(by_key[..., self._token_columns(tokens)], shared[..., tokens], out=out[..., tokens])
        if self.memories:
            memories, columns = out[..., placed], self.columns.expand(rows, heads, queries, -1)
            if memories.dtype == table.dtype:
                torch.gather(by_key, -1, columns, out=memories)
            else:
                memories.copy_(by_key.gather(-1, columns))
            memories += shared[..., placed]

    def gradients(
        self, grad_scores: Tensor, query: Tensor, positions: Tensor, workspace: Workspace
    ) -> PositionGradients:
        """Computes the gradients of :meth:`add_scores` for the gradient ``grad_scores`` [n, K, Q, S] of its ``out``."""
        rows, heads, queries, width = query.shape
        table = self._table("grad_table", query, workspace).zero_()
        by_key = _by_key(table)
        placed, tokens = self._parts(grad_scores.size(-1))
        by_key[..., self._token_columns(tokens)] = grad_scores[..., tokens]
        if self.memories:
            columns, grad = self.columns.expand(rows, heads, queries, -1), grad_scores[..., placed]
            if self.distinct:
                by_key.scatter_(-1, columns, grad)
            else:
                # An unseen key may have the position of a visible one; its gradient is 0.
                by_key.scatter_add_(-1, columns, grad)
        products = table.flatten(0, 2)[:, : self.position_range]
        return PositionGradients(
            query=torch.mm(products, positions).view(query.shape),
            positions=torch.mm(products.t(), query.reshape(-1, width)),
        )

    def _table(self, name: str, query: Tensor, workspace: Workspace) -> Tensor:
        """Takes the table [n, K, Q, W] from the workspace."""
        width = aligned(self.position_range + query.size(2) + 1)
        return workspace.take(name, (*query.shape[:3], width), query.dtype)

    def _parts(self, keys: int) -> tuple[slice, slice]:
        """Finds, among S keys, the memories that may have a position, and the block's tokens that do."""
        end = keys - self.tile.stop
        return slice(end - self.after - self.memories, end - self.after), slice(end + self.first_token, keys)

    def _token_columns(self, tokens: slice) -> slice:
        return slice(self.token_column, self.token_column + tokens.stop - tokens.start)


def _by_key(table: Tensor) -> Tensor:
    """Returns a view of the table [n, K, Q, W] in which each column is a key."""
    rows, heads, queries, width = table.shape
    strides = (*table.stride()[:2], width - 1, 1)
    return table.as_strided((rows, heads, queries, width), strides, table.storage_offset())
