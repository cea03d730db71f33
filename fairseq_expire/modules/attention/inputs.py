"""What attention over a block is computed of, and how that is cut into steady memories and pieces of the other candidates.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates, d width of a head. A piece (see pieces.py) has n
rows, Q queries and as many of the candidates as these can see.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from fairseq_expire.modules.attention.fused import has_fused_kernel
from fairseq_expire.modules.attention.memory_order import MemoryOrder
from fairseq_expire.modules.attention.position_scores import RelativePositions, relative_positions
from fairseq_expire.modules.attention.tiles import Tile, pieces
from fairseq_expire.modules.visibility import Visibility

# Exponents are to base 2: on a CPU, PyTorch's exp takes many times as long where there is a -inf, and exp2 does not.
LOG2_E = math.log2(math.e)
# Scores (floats) and queries of a piece. On a CPU, fewer would cost more calls and less efficient products, more scores leave the
# caches, and more queries compute scores of the block's own future.
SCORES_ON_CPU, QUERIES_ON_CPU = 1 << 21, 128
SCORES_ELSEWHERE = 1 << 26
# For fewer queries than this, putting memories in order takes longer than what it saves.
FEWEST_ARRANGED = 48


class Settings(NamedTuple):
    counts: tuple[int, ...]
    dropout: float
    seed: int


@dataclass(frozen=True)
class Inputs:
    """What attention is computed of; ``query`` is scaled so that its products are exponents to base 2, ``positions`` are those of
    the distances P ... 1.

    With an arrangement, memories are in its order, and those in front of its border are no business of the pieces.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    positions: Tensor
    settings: Settings
    arrangement: MemoryOrder | None = None

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, position: Tensor, settings: Settings
    ) -> "Inputs":
        """With the candidates where they are."""
        return cls(query, key, value, visibility, position.to(query.dtype).flip(0), settings)

    def arranged(self) -> "Inputs":
        """With the memories in order, where it pays: for more than a few queries, and on a CPU, since memories are looked at for it; but not
        if some are compressed and seen only later."""
        ordered = self.in_order()
        if ordered.arrangement is None:
            return ordered
        return replace(
            ordered, **{name: ordered.arrangement.arranged(getattr(self, name)) for name in ("key", "value")}
        )

    def in_order(self) -> "Inputs":
        """As :meth:`arranged`, of inputs whose keys and values are so already."""
        if not self.memories or self.visibility.min_distance is not None or self.query.size(2) < FEWEST_ARRANGED:
            return self
        # Asked on every device: it says why there is none.
        in_front = has_fused_kernel(self.query, self.settings.dropout)
        if self.query.device.type != "cpu":
            return self
        arrangement = MemoryOrder.of(self.visibility, self.position_range, in_front=in_front)
        return replace(self, visibility=arrangement.visibility(self.visibility), arrangement=arrangement)

    @property
    def position_range(self) -> int:
        return self.positions.size(0)

    @property
    def memories(self) -> int:
        return self.key.size(2) - self.query.size(2)

    @property
    def steady(self) -> tuple[int, ...]:
        """How many steady memories each row has in front, for a kernel of their own."""
        return (0,) * self.query.size(0) if self.arrangement is None else self.arrangement.steady

    def _seen(self, row: int, first: int) -> int:
        """How many of the last slots hold all that a row's queries from ``first`` on see, steady ones in front left out."""
        return self.settings.counts[row] if self.arrangement is None else self.arrangement.seen(row, first)

    def _reach(self, piece: Tile, visibility: Visibility) -> RelativePositions:
        """``visibility``: of the piece's rows and candidates."""
        memories, after = piece.memory, 0
        if self.arrangement is not None:
            memories, after = self.arrangement.within(piece, self.position_range)
        elif self.visibility.min_distance is None:
            # The youngest stand last.
            memories = min(memories, max(0, self.position_range - piece.first))
        return relative_positions(piece, visibility, self.position_range, memories=memories, after=after)

    def work(self) -> Iterator["Work"]:
        """All but the steady memories in front, in pieces."""
        rows, heads, block = self.query.shape[:3]
        on_cpu = self.query.device.type == "cpu"
        scores, queries = (SCORES_ON_CPU, QUERIES_ON_CPU) if on_cpu else (SCORES_ELSEWHERE, block)
        own = self.memories
        for piece in pieces(rows, self._seen, block=block, heads=heads, scores=scores, queries=queries):
            seen = slice(own - piece.memory, own + piece.last)
            visibility = self.visibility.select(piece.rows, seen)
            yield Work(
                piece=piece,
                queries=(piece.rows, slice(None), slice(piece.first, piece.last)),
                candidates=(piece.rows, slice(None), seen),
                query=self.query[piece.rows, :, piece.first : piece.last],
                key=self.key[piece.rows, :, seen],
                value=self.value[piece.rows, :, seen],
                visibility=visibility,
                reach=self._reach(piece, visibility),
            )


@dataclass(frozen=True)
class Work:
    """A piece with its inputs: ``query`` [n, K, Q, d], ``key`` and ``value`` [n, K, S, d]; and where in the whole its queries and
    candidates are."""

    piece: Tile
    queries: tuple[slice, slice, slice]
    candidates: tuple[slice, slice, slice]
    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    reach: RelativePositions
