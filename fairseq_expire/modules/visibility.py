"""Visibility of keys to the queries of a block.

Size legend: B rows, H heads of a span (1 if the heads share it), T queries of a block, Q of these in a row, S keys.

Steps are counted from the block's first query, which is t = 0. A key of age a is at distance a + t from query t.
Memories have ages of 1 and more, the block's own tokens 0, -1, ... -(T - 1).

Soft mask (section 4.1): with r = span - distance steps remaining, m = clamp(1 + r / R, 0, 1). A key is seen in full
while r >= 0, then on its ramp, and expires for good when r = -R.

Window: query t sees a key if first <= t < end. The soft mask is one bound of this window; all other bounds are hard:

=================  =============================================  =====================================
bound              from                                           hides
=================  =============================================  =====================================
t >= first         ``min_distance`` - age (1 - age for a token)   the query itself and what comes later
t < end            ``expires_at`` = span - age + R                expired keys
t < end            ``max_distance`` + 1 - age                     keys further back than a limit
t < end            ``hidden_from``                                what a border or a budget hides
never              an age far above every span                    empty slots and padding
=================  =============================================  =====================================

Windows never reopen: a key that no later query sees can be deleted. Attention, deletion, reports and the span penalty
all follow from this file and have no rule of their own.
"""

import functools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

# Masks up to this value count as 0; in single precision, every real mask is larger.
UNSEEN = 1e-15
# Masks are clamped to this before log2: log2(0) = -inf is slow in vector units.
TINY = UNSEEN**2


@dataclass(frozen=True)
class Visibility:
    """Window, soft mask and position of every key for the queries of a block.

    Build it with :meth:`of`.

    Args:
        span: [B, H, S] e_i, in steps.
        age: [B, S] int64, steps back from the block's first query.
        block: T.
        ramp: R, in steps; 1 is a hard edge, since distances are whole steps.
        max_distance: no key is seen from further back than this many steps; None for no limit.
        min_distance: [B, S] int64, see :meth:`of`; None if it is 1 for all keys.
        hidden_from: [B, S] int64, see :meth:`of`; None if no key has such a bound.
        stride: see :meth:`of`.
        num_block_tokens: number of keys, the last ones, that are the block's own tokens, in their order.
    """

    span: Tensor
    age: Tensor
    block: int
    ramp: float
    max_distance: int | None
    min_distance: Tensor | None
    hidden_from: Tensor | None
    stride: int
    num_block_tokens: int

    @classmethod
    def of(
        cls,
        *,
        span: Tensor,
        age: Tensor,
        block: int,
        ramp: float,
        max_distance: int | None = None,
        min_distance: Tensor | None = None,
        hidden_from: Tensor | None = None,
        stride: int = 1,
    ) -> "Visibility":
        """Visibility of memories followed by the T tokens of a block.

        Args:
            span: [B, H, S] e_i in steps, one for each head (H = K) or for all (H = 1).
            age: [B, S] int64, steps back from the block's first query; 0, -1, ... for the block's own tokens, and far
                more than any span for what is never seen.
            block: T.
            ramp: R, in steps.
            max_distance: hides keys further back than this many steps, whatever their span; None for no limit.
            min_distance: [B, S] int64; a key is seen from this many steps back on. 1 for ordinary states, more for a
                memory that stands for several states. None if it is 1 for all keys.
            hidden_from: [B, S] int64; a key is not seen from this query of the block on, whatever its span. More than T
                for a key that the query after the block may still see. None if no key has such a bound.
            stride: c, how many states a key with a ``min_distance`` above 1 stands for, and so the steps between two of
                its positions.
        Raises:
            ValueError: if the shapes do not fit each other, or ages are not whole steps.
        """
        if span.dim() != 3 or age.shape != (span.size(0), span.size(2)):
            raise ValueError(f"expected span [B, H, S] and age [B, S], got {list(span.shape)} and {list(age.shape)}")
        if age.dtype != torch.int64:
            raise ValueError(f"ages are whole steps: expected an int64 tensor, got {age.dtype}")
        if min_distance is not None and min_distance.shape != age.shape:
            raise ValueError(
                f"min_distance: expected one for each key, as age {list(age.shape)}, got {list(min_distance.shape)}"
            )
        if hidden_from is not None and hidden_from.shape != age.shape:
            raise ValueError(
                f"hidden_from: expected one for each key, as age {list(age.shape)}, got {list(hidden_from.shape)}"
            )
        return cls(
            span, age, block, float(ramp), max_distance, min_distance, hidden_from, stride, num_block_tokens=block
        )

    def select(self, rows: slice, keys: slice) -> "Visibility":
        """Visibility of some rows and consecutive keys only."""
        start, stop, _ = keys.indices(self.age.size(1))
        return replace(
            self,
            span=self.span[rows, :, keys],
            age=self.age[rows, keys],
            min_distance=None if self.min_distance is None else self.min_distance[rows, keys],
            hidden_from=None if self.hidden_from is None else self.hidden_from[rows, keys],
            num_block_tokens=min(max(0, stop - (self.age.size(1) - self.num_block_tokens)), stop - start),
        )

    def detach(self) -> "Visibility":
        """Returns a copy without gradient."""
        return replace(self, span=self.span.detach())

    def to(self, dtype: torch.dtype) -> "Visibility":
        """Returns the visibility with spans in another floating-point type."""
        return self if self.span.dtype == dtype else replace(self, span=self.span.to(dtype))

    @cached_property
    def expires_at(self) -> Tensor:
        """[B, H, S], without gradient: the time t, not always a whole number, at which the soft mask reaches 0."""
        return _expires_at(self.span.detach(), self.age, self.ramp)

    @cached_property
    def first(self) -> Tensor:
        """[B, S] int64: the first query that may see a key; T or more if none of the block may."""
        return ((1 if self.min_distance is None else self.min_distance) - self.age).clamp(min=0)

    @cached_property
    def hard_end(self) -> Tensor | None:
        """[B, S] int64: the first query that does not see a key any more, whatever its span; None for no limit.

        All hard bounds of t < end meet here.
        """
        ends = [] if self.max_distance is None else [self.max_distance + 1 - self.age]
        if self.hidden_from is not None:
            ends.append(self.hidden_from)
        return functools.reduce(torch.minimum, ends).clamp(min=0) if ends else None

    @cached_property
    def end(self) -> Tensor:
        """[B, S] int64: the first of the block's queries from which no head sees a key any more; T if there is none."""
        end = _queries_before(self.expires_at.amax(dim=1), self.block)
        return end if self.hard_end is None else torch.minimum(end, self.hard_end)

    @property
    def fully_visible(self) -> Tensor:
        """[B, S] bool: keys that every head of every query of the block sees with a mask of 1."""
        full = (self.expires_at.amin(dim=1) >= self.ramp + (self.block - 1)) & (self.first == 0)
        return full if self.hard_end is None else full & (self.hard_end >= self.block)

    @property
    def visible_later(self) -> Tensor:
        """[B, S] bool: keys that some query after the block still sees; all others can be deleted."""
        visible = self.age + self.block < self.span.detach().amax(dim=1) + self.ramp
        return visible if self.hard_end is None else visible & (self.hard_end > self.block)

    def sizes(self) -> Tensor:
        """[B, T] int64, |C_t|: how many keys each query sees, with any head."""
        end = self.end
        first = torch.minimum(self.first, end)
        change = first.new_zeros(first.size(0), self.block + 1)
        change.scatter_add_(1, first, torch.ones_like(first)).scatter_add_(1, end, torch.full_like(end, -1))
        return change.cumsum(dim=1)[:, : self.block]

    def queries_on_ramp(self, padding: Tensor | None = None) -> Tensor:
        """[B, H, S] int64: how many queries of the block see a key on its ramp.

        Args:
            padding: [B, T] bool, True for queries that do not count; they stand at the end of a row.
        """
        end = _queries_before(self.expires_at, self.block)
        if self.hard_end is not None:
            end = torch.minimum(end, self.hard_end.unsqueeze(1))
        if padding is not None:
            end = torch.minimum(end, (self.block - padding.sum(dim=1)).view(-1, 1, 1))
        # The mask is below 1 for t > expires_at - R.
        faded = (self.expires_at - self.ramp).floor().clamp(-1, self.block).to(torch.int64) + 1
        return (end - torch.maximum(faded, self.first.unsqueeze(1))).clamp(min=0)

    def distance(self, start: int, stop: int) -> Tensor:
        """[B, Q, S] int64: steps from each query back to each key.

        Args:
            start, stop: which queries, start ... stop - 1; as in all methods below.
        """
        return self.age.unsqueeze(1) + _steps(self.age, start, stop)

    def position_index(self, start: int, stop: int) -> Tensor:
        """[B, Q, S] int64: the position of a key relative to a query, from 1 on for keys in the past of the query.

        It is the distance in steps, and in slots for keys that stand for several states.
        """
        distance = self.distance(start, stop)
        if self.min_distance is None:
            return distance
        nearest = self.min_distance.unsqueeze(1)
        strided = nearest + torch.div(distance - nearest, self.stride, rounding_mode="floor")
        return torch.where(nearest > 1, strided, distance)

    def soft_mask(self, start: int, stop: int) -> Tensor:
        """[B, H, Q, S]: m, 0 for unseen keys. Spans get a gradient where 0 < m < 1."""
        steps = _steps(self.age, start, stop)
        visible = steps >= self.first.unsqueeze(1)
        if self.hard_end is not None:
            visible &= steps < self.hard_end.unsqueeze(1)
        expires_at = _expires_at(self.span, self.age, self.ramp)
        mask = (expires_at.unsqueeze(-2) - _steps(expires_at, start, stop)) / self.ramp
        mask = mask.masked_fill(mask >= 1, 1)
        return mask.masked_fill((mask <= UNSEEN) | ~visible.unsqueeze(1), 0)

    def bias(self, start: int, stop: int) -> Tensor:
        """[B, H, Q, S]: log2 m, without gradient; -inf for unseen keys."""
        mask = self._until_expiry(start, stop).div_(self.ramp).clamp_(TINY, 1)
        bias = torch.threshold_(mask.log2_(), math.log2(UNSEEN), float("-inf"))
        steps = _steps(self.age, start, stop)
        if self.hard_end is not None:
            bias.masked_fill_((steps >= self.hard_end.unsqueeze(1)).unsqueeze(1), float("-inf"))
        # The past of all these queries needs no look: memories, and the block's own tokens before the first of them.
        past = self.age.size(1) - self.num_block_tokens + start if self.min_distance is None else 0
        early = steps < self.first[:, None, past:]
        bias[..., past:].masked_fill_(early.unsqueeze(1), float("-inf"))
        return bias

    def slope(self, start: int, stop: int) -> Tensor:
        """[B, H, Q, S]: the derivative of log m by the span: 1 / (R m) on the ramp, 0 before, any number behind."""
        # 1 / TINY where expired: it is multiplied with a gradient that is exactly 0.
        slope = self._until_expiry(start, stop).clamp_(min=TINY).reciprocal_()
        return torch.threshold_(slope, 1 / self.ramp, 0.0)

    def _until_expiry(self, start: int, stop: int) -> Tensor:
        """[B, H, Q, S]: steps until a key expires, r + R."""
        return self.expires_at.unsqueeze(-2) - _steps(self.expires_at, start, stop)


def _expires_at(span: Tensor, age: Tensor, ramp: float) -> Tensor:
    remaining = span - age.unsqueeze(1)
    return remaining + ramp


def _steps(like: Tensor, start: int, stop: int) -> Tensor:
    """[Q, 1]: start ... stop - 1, in the type of ``like``."""
    return torch.arange(start, stop, device=like.device, dtype=like.dtype).unsqueeze(-1)


def _queries_before(time: Tensor, block: int) -> Tensor:
    """[...] int64: how many of a block's queries, at t = 0 ... T - 1, come before a time; none before a NaN."""
    return time.ceil().clamp(0, block).nan_to_num(0.0).to(torch.int64)
