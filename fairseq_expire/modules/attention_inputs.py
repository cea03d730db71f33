"""What attention over a block is computed of, and how that is cut into far candidates and pieces of the near ones.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates, d width of a head. A piece (see pieces.py) has n
rows, Q queries and as many of the candidates as these can see.
"""

from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional, Tuple

from torch import Tensor

from .fused import Far, has_fused_kernel
from .pieces import Piece, pieces
from .positions import Reach, padded_positions, reach_of
from .soft_mask import Compressed, Sight, steps_left

# Scores (floats) and queries of a piece. On a CPU a piece fits a cache, and fewer queries would make the matrix products
# inefficient, more compute scores of the block's own future.
SCORES_ON_CPU, QUERIES_ON_CPU = 1 << 20, 128
SCORES_ELSEWHERE = 1 << 26


class Settings(NamedTuple):
    ramp: float
    longest: Optional[int]
    compressed: Optional[Compressed]
    held: Tuple[int, ...]
    dropout: float
    seed: int


@dataclass(frozen=True)
class Inputs:
    """What attention is computed of; ``query`` is scaled, ``positions`` padded."""

    query: Tensor
    key: Tensor
    value: Tensor
    sight: Sight
    positions: Tensor
    settings: Settings
    fused: bool

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, span: Tensor, position: Tensor, age: Tensor, settings: Settings
    ) -> "Inputs":
        return cls(
            query=query,
            key=key,
            value=value,
            sight=Sight(
                steps_left(span, age, ramp=settings.ramp), age, settings.ramp, settings.longest, settings.compressed
            ),
            positions=padded_positions(position.to(query.dtype), query.size(2)),
            settings=settings,
            fused=has_fused_kernel(query, settings.dropout),
        )

    @property
    def position_range(self) -> int:
        return self.positions.size(0) - self.query.size(2) - 1

    @property
    def border(self) -> int:
        """The slots before this one are far."""
        # A compressed memory stands behind others that are not seen yet: its place says little about its position.
        if not self.fused or self.settings.compressed is not None:
            return 0
        return max(0, self.key.size(2) - self.query.size(2) - self.position_range)

    def far(self) -> Far:
        slots = slice(self.border)
        near = self.key.size(2) - self.query.size(2) - self.border
        held = [max(0, count - near) for count in self.settings.held]
        key, value = self.key[:, :, slots], self.value[:, :, slots]
        return Far(self.query, key, value, self.sight.of(slice(None), slots), held)

    def near(self) -> Iterator["Work"]:
        """The near candidates, in pieces."""
        heads, block = self.query.shape[1:3]
        on_cpu = self.query.device.type == "cpu"
        scores, queries = (SCORES_ON_CPU, QUERIES_ON_CPU) if on_cpu else (SCORES_ELSEWHERE, block)
        own = self.key.size(2) - block
        held = [min(count, own - self.border) for count in self.settings.held]
        for piece in pieces(held, block=block, heads=heads, scores=scores, queries=queries):
            seen = slice(own - piece.memory, own + piece.last)
            sight = self.sight.of(piece.rows, seen)
            yield Work(
                piece=piece,
                queries=(piece.rows, slice(None), slice(piece.first, piece.last)),
                candidates=(piece.rows, slice(None), seen),
                query=self.query[piece.rows, :, piece.first : piece.last],
                key=self.key[piece.rows, :, seen],
                value=self.value[piece.rows, :, seen],
                sight=sight,
                reach=reach_of(piece, sight, self.position_range),
            )


@dataclass(frozen=True)
class Work:
    """A piece with its inputs: ``query`` [n, K, Q, d], ``key`` and ``value`` [n, K, S, d]; and where in the whole its queries and
    candidates are."""

    piece: Piece
    queries: Tuple[slice, slice, slice]
    candidates: Tuple[slice, slice, slice]
    query: Tensor
    key: Tensor
    value: Tensor
    sight: Sight
    reach: Reach
