"""What a block sees of its candidates, and how much: the soft mask, from spans and ages (section 4.1).

Size legend: B rows, H heads of a span (1 if the heads share it), T queries of a block, S candidates.

Query t of a block sees candidate i through m = clamp(1 + (e_i - distance) / R, 0, 1), and its distance is t more than the
age that the first query sees. So one number for each candidate says all, the steps that are *left* to it as the first query
sees it, left_i = e_i - age_i + R: m = clamp((left_i - t) / R, 0, 1). It never rises with t: a candidate is seen in full while
more than R steps are left, then on its ramp, and never again from left_i on.

Two policies hide more than that, at once: Adaptive-Span what is older than L, the Compressive Transformer its
compressed memories until the states they stand for are gone (see :class:`Visibility`).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# So far below every number of steps that is not zero that its root is, too.
TINY = 1e-30


def steps_left(span: Tensor, age: Tensor, *, ramp: float) -> Tensor:
    """In how many steps from the first query of a block each candidate is gone for good.

    Args:
        span: [B, H, S] e_i, in steps.
        age: [B, S] int64, steps back from the first query of the block; 0, -1, ... for the block itself.
        ramp: R, in steps.
    Returns:
        [B, H, S], of the type of ``span``; negative for what is long gone.
    """
    return (span - age.unsqueeze(1)) + ramp


def _left_to(left: Tensor, first: int, last: int) -> Tensor:
    """[B, H, S] -> [B, H, last - first, S], as the queries first ... last - 1 see it."""
    return left.unsqueeze(-2) - torch.arange(first, last, device=left.device, dtype=left.dtype).unsqueeze(-1)


def soft_mask_bias(left: Tensor, first: int, last: int, *, ramp: float) -> Tensor:
    """[B, H, last - first, S]: log2 m for the queries first ... last - 1, -inf for what is expired."""
    # Not from zero: its logarithm takes a slow path in vector units.
    mask = _left_to(left, first, last).div_(ramp).clamp_(TINY, 1)
    return F.threshold_(mask.log2_(), math.log2(TINY) / 2, float("-inf"))


def soft_mask_slope(left: Tensor, first: int, last: int, *, ramp: float) -> Tensor:
    """Derivative of log m by the span: 1 / (R m) on the ramp, zero where m is 1; some number where it is 0."""
    # 1 / TINY where expired: times a gradient that is exactly 0.
    slope = _left_to(left, first, last).clamp_(min=TINY).reciprocal_()
    return F.threshold_(slope, 1 / ramp, 0.0)


def _queries_before(steps: Tensor, block: int) -> Tensor:
    """[...] int64: how many queries of a block, at steps 0 ... T - 1, come before a number of steps; none before a NaN."""
    return steps.ceil().clamp(0, block).nan_to_num(0.0).to(torch.int64)


def _seen_from(age: Tensor) -> Tensor:
    """[B, S] int64: the first query t that a candidate is in the past of; a query never sees itself."""
    return (1 - age).clamp(min=0)


@dataclass(frozen=True)
class Compressed:
    """Which candidates stand for several states each, and from how far they are seen.

    Args:
        slots: [B, S] bool.
        after: one is seen from more than this many steps after the oldest of its states (its age), by when that is gone.
        rate: how many states each stands for: ``rate`` steps further back, it is one position further back.
    """

    slots: Tensor
    after: int
    rate: int

    def positions(self, distance: Tensor) -> Tensor:
        """The position, in slots back from the query, of compressed memories at these distances: behind those of the states."""
        return self.after + 1 + torch.div(distance - (self.after + 1), self.rate, rounding_mode="floor")


@dataclass(frozen=True)
class Visibility:
    """What the queries of a block see of candidates.

    Args:
        left: [B, H, S], see :func:`steps_left`.
        age: [B, S] int64, steps back from the first query; 0, -1, ... for the block.
        ramp: R, in steps.
        longest: nothing is seen from further than this, whatever is left to it; None for no limit.
        compressed: which candidates stand for several; None if none does.
    """

    left: Tensor
    age: Tensor
    ramp: float
    longest: int | None = None
    compressed: Compressed | None = None

    def of(self, rows: slice, slots: slice) -> "Visibility":
        """Of some rows and candidates only."""
        compressed = self.compressed
        if compressed is not None:
            compressed = replace(compressed, slots=compressed.slots[rows, slots])
        return replace(self, left=self.left[rows, :, slots], age=self.age[rows, slots], compressed=compressed)

    def distance(self, first: int, last: int) -> Tensor:
        """[B, last - first, S] int64, in steps."""
        return self.age.unsqueeze(1) + torch.arange(first, last, device=self.age.device).unsqueeze(1)

    def bias(self, first: int, last: int) -> Tensor:
        """[B, H, last - first, S]: log2 m, -inf for what is not seen (but the future is)."""
        bias = soft_mask_bias(self.left, first, last, ramp=self.ramp)
        if self.longest is not None:
            bias.masked_fill_((self.distance(first, last) > self.longest).unsqueeze(1), float("-inf"))
        if self.compressed is not None:
            early = self.compressed.slots.unsqueeze(1) & (self.distance(first, last) <= self.compressed.after)
            bias.masked_fill_(early.unsqueeze(1), float("-inf"))
        return bias

    def slope(self, first: int, last: int) -> Tensor:
        """[B, H, last - first, S]: the derivative of log m by the span; some number where nothing is seen."""
        return soft_mask_slope(self.left, first, last, ramp=self.ramp)

    def until(self, block: int) -> Tensor:
        """[B, S] int64: the first of a block's T queries that sees the candidate with no head any more, T if none does not."""
        until = _queries_before(self.left.amax(dim=1), block)
        if self.longest is not None:
            until = torch.minimum(until, (self.longest + 1 - self.age).clamp(min=0))
        return until

    def steady(self, block: int) -> Tensor:
        """[B, S] bool: which candidates, all of them memories, every head of the block's last query sees in full."""
        steady = self.left.amin(dim=1) >= self.ramp + (block - 1)
        return steady if self.longest is None else steady & (self.age + (block - 1) <= self.longest)

    def sizes(self, block: int) -> Tensor:
        """[B, T] int64, |C_t|: how many candidates each query of the block sees, with any head."""
        since, until = _seen_from(self.age), self.until(block)
        if self.compressed is not None:
            late = (self.compressed.after + 1 - self.age).clamp(min=0)
            since = torch.where(self.compressed.slots, torch.maximum(since, late), since)
        return _sizes(since, until, block)


def _sizes(since: Tensor, until: Tensor, block: int) -> Tensor:
    """[B, T] int64: how many of the candidates, each seen by the queries ``since`` ... ``until`` - 1 ([B, S]), a query sees."""
    since = torch.minimum(since, until)
    change = since.new_zeros(since.size(0), block + 1)
    change.scatter_add_(1, since, torch.ones_like(since)).scatter_add_(1, until, torch.full_like(until, -1))
    return change.cumsum(dim=1)[:, :block]


def queries_on_ramp(left: Tensor, age: Tensor, block: int, *, ramp: float, padding: Tensor | None) -> Tensor:
    """[B, H, S] int64: for how many queries of the block a candidate is seen on its ramp.

    Args:
        padding: [B, T] bool, True for queries that do not count; they stand at the end of a row.
    """
    until = _queries_before(left, block)
    if padding is not None:
        until = torch.minimum(until, (block - padding.sum(dim=1)).view(-1, 1, 1))
    # On the ramp for t > left - R.
    full = (left - ramp).floor().clamp(-1, block).to(torch.int64) + 1
    return (until - torch.maximum(full, _seen_from(age).unsqueeze(1))).clamp(min=0)
