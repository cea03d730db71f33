"""Scores that depend on the position of a key relative to a query, q_t . p(n), for one tile.

Size legend: n rows, K heads, Q queries of the tile, S keys, P positions, d width of a head, W at least P + Q + 1.

The products of all queries with all positions are a table [Q, P], with position P in column 0 and position 1 in column
P - 1. One query on, a key is one position further back, so its scores lie on a diagonal of the table. Read with rows
that are one shorter, the table has them in one column. At least Q + 1 columns of zeros behind the table serve keys
without a position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_expire.modules.attention.tiles import Tile, Workspace, aligned
from fairseq_expire.modules.visibility import Visibility


@dataclass(frozen=True)
class RelativePositions:
    """Columns of a tile's keys in the table.

    Args:
        tile: the tile.
        position_range: P.
        memories: how many memories there are from the first with a position to the last; some between may have none.
        after: how many memories stand between these and the block.
        columns: [n, 1, 1 or Q, memories] int64, the column of each of those memories.
        own: the first of the block's tokens with a position.
        own_column: its column; the tokens after it have the next ones.
        distinct: whether no two memories of a row have the same position.
    """

    tile: Tile
    position_range: int
    memories: int
    after: int
    columns: Tensor
    own: int
    own_column: int
    distinct: bool

    @classmethod
    def of(
        cls, tile: Tile, visibility: Visibility, position_range: int, *, memories: int, after: int
    ) -> "RelativePositions":
        """Finds the columns.

        Args:
            tile: the tile.
            visibility: of the tile's rows and keys; the last keys are the block's up to ``tile.last``, in their order.
            position_range: P.
            memories: how many memories there are from the first that may have a position to the block.
            after: how many of these stand behind the last that may have one.
        """
        queries = tile.last - tile.first
        end = visibility.age.size(1) - tile.last
        placed = slice(end - memories, end - after)
        if visibility.min_distance is None:
            # Column P - n of the first query's row holds distance n.
            columns = (position_range - tile.first) - visibility.age[:, None, placed]  # [n, 1, memories]
        else:
            index = visibility.select(slice(None), placed).position_index(tile.first, tile.last)  # [n, Q, memories]
            # A key that stands for several states leaves the diagonal: it has a column for each query.
            diagonal = torch.arange(queries, device=index.device).unsqueeze(1)
            columns = (position_range - index + diagonal).masked_fill_((index < 1) | (index > position_range), -1)
        own = max(0, tile.first - position_range)
        return cls(
            tile=tile,
            position_range=position_range,
            memories=memories - after,
            after=after,
            columns=columns.masked_fill(columns < 0, position_range + queries).unsqueeze(1),
            own=own,
            own_column=position_range - tile.first + own,
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
        placed, own = self._parts(out.size(-1))
        for unplaced in (slice(0, placed.start), slice(placed.stop, own.start)):
            if unplaced.start < unplaced.stop:
                out[..., unplaced] = shared[..., unplaced]
        torch.add(by_key[..., self._own_columns(own)], shared[..., own], out=out[..., own])
        if self.memories:
            memories, columns = out[..., placed], self.columns.expand(rows, heads, queries, -1)
            if memories.dtype == table.dtype:
                torch.gather(by_key, -1, columns, out=memories)
            else:
                memories.copy_(by_key.gather(-1, columns))
            memories += shared[..., placed]

    def gradients(
        self, grad_scores: Tensor, query: Tensor, positions: Tensor, workspace: Workspace
    ) -> tuple[Tensor, Tensor]:
        """The gradients of :meth:`add_scores`: of the query [n, K, Q, d], and of ``positions`` [P, d]."""
        rows, heads, queries, width = query.shape
        table = self._table("grad_table", query, workspace).zero_()
        by_key = _by_key(table)
        placed, own = self._parts(grad_scores.size(-1))
        by_key[..., self._own_columns(own)] = grad_scores[..., own]
        if self.memories:
            columns, grad = self.columns.expand(rows, heads, queries, -1), grad_scores[..., placed]
            if self.distinct:
                by_key.scatter_(-1, columns, grad)
            else:
                # A hidden key may have the position of a visible one; its own gradient is 0.
                by_key.scatter_add_(-1, columns, grad)
        products = table.flatten(0, 2)[:, : self.position_range]
        return torch.mm(products, positions).view(query.shape), torch.mm(products.t(), query.reshape(-1, width))

    def _table(self, name: str, query: Tensor, workspace: Workspace) -> Tensor:
        """[n, K, Q, W]."""
        width = aligned(self.position_range + query.size(2) + 1)
        return workspace.take(name, (*query.shape[:3], width), query.dtype)

    def _parts(self, keys: int) -> tuple[slice, slice]:
        """Of S keys, the memories that may have a position, and the block's tokens that do."""
        end = keys - self.tile.last
        return slice(end - self.after - self.memories, end - self.after), slice(end + self.own, keys)

    def _own_columns(self, own: slice) -> slice:
        return slice(self.own_column, self.own_column + own.stop - own.start)


def _by_key(table: Tensor) -> Tensor:
    """The table [n, K, Q, W] as a view in which each column is a key."""
    rows, heads, queries, width = table.shape
    strides = (*table.stride()[:2], width - 1, 1)
    return table.as_strided((rows, heads, queries, width), strides, table.storage_offset())
