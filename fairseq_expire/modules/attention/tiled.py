"""Tiled attention: the fast path for CPUs and CUDA.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S keys (memories, then the block), d width of a
head, P positions. A tile (``tiles.py``) has n rows, Q queries, and as many of the keys as these can see.

Where it pays, memories are sorted first (``memory_order.py``), and a fused kernel takes those that are fully visible
and have no position (``fused.py``). All other keys are computed tile by tile, and of sorted memories a tile leaves out
those that have expired. Of [T, S] only the log-sum-exp of each query is kept: backward computes the scores again.
Spans, masks and softmax are in float32 or better.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fairseq_expire.modules.attention.fused import attend_fused, fused_gradients, has_fused_kernel
from fairseq_expire.modules.attention.memory_order import MemoryOrder
from fairseq_expire.modules.attention.position_scores import RelativePositions
from fairseq_expire.modules.attention.tiles import MemoryRange, Tile, Workspace, tiles
from fairseq_expire.modules.visibility import Visibility

# Exponents are to base 2: on a CPU, PyTorch's exp takes many times as long where there is a -inf, and exp2 does not.
LOG2_E = math.log2(math.e)
# Log-sum-exp, to base 2, of a query that has seen nothing yet: below every real one, but finite.
NOTHING = -1e30
# Scores (floats) and queries of a tile. On a CPU, fewer scores cost more calls and less efficient products, more scores
# leave the caches, and more queries compute more scores of the block's own future.
MAX_SCORES_ON_CPU, MAX_QUERIES_ON_CPU = 1 << 21, 128
MAX_SCORES_ELSEWHERE = 1 << 26
# Sorting memories for fewer queries than this takes longer than what it saves.
MIN_QUERIES_TO_SORT = 48


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
    """Computes the operation of ``reference.py``.

    For the arguments see :func:`fairseq_expire.modules.attention.attend`.
    """
    rows, _, block, width = query.shape
    counts = (key.size(2) - block,) * rows if counts is None else tuple(counts)
    # Drawn where no device needs to be waited for; backward draws the same probabilities to drop again.
    seed = int(torch.randint(1 << 62, ()).item()) if dropout else 0
    visibility = visibility.to(torch.promote_types(query.dtype, torch.float32))
    # Fused kernels take for granted that the numbers of a vector lie side by side.
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (query * (LOG2_E * width**-0.5), key, value)
    )
    settings = _Settings(counts, dropout, seed)
    return _apply(query, key, value, visibility.span, position, visibility.detach(), settings)


@dataclass(frozen=True)
class _Settings:
    """``counts`` and ``dropout`` of :func:`attend`, and the seed of what is dropped."""

    counts: tuple[int, ...]
    dropout: float
    seed: int

    def generator(self, device: torch.device) -> torch.Generator | None:
        return torch.Generator(device).manual_seed(self.seed) if self.dropout else None


@dataclass(frozen=True)
class _Inputs:
    """Inputs of the operation.

    Args:
        query: [B, K, T, d], scaled so that its products are exponents to base 2.
        key, value: [B, K, S, d].
        visibility: of the keys.
        positions: [P, d], embeddings of the positions P, P - 1, ... 1.
        settings: counts, dropout and the seed, see :class:`_Settings`.
        order: order of the memories in all of these; None if they are not sorted.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    positions: Tensor
    settings: _Settings
    order: MemoryOrder | None = None

    def find_order(self) -> MemoryOrder | None:
        """Finds the order of the memories; None where sorting does not pay or is not possible.

        It does not pay for a few queries, nor off the CPU, where looking at the memories would wait for the device. It
        is not possible with memories that are seen only from some distance on.
        """
        block = self.query.size(2)
        if self.key.size(2) == block or self.visibility.min_distance is not None or block < MIN_QUERIES_TO_SORT:
            return None
        # Asked on every device: it logs why there is none.
        with_kernel = has_fused_kernel(self.query, self.settings.dropout)
        if self.query.device.type != "cpu":
            return None
        return MemoryOrder.of(self.visibility, self.positions.size(0), with_kernel=with_kernel)

    def sort(self) -> "_Inputs":
        """Returns the inputs with sorted memories, where that pays."""
        order = self.find_order()
        if order is None:
            return self
        return replace(self, key=order.sort(self.key), value=order.sort(self.value))._in(order)

    def in_order(self) -> "_Inputs":
        """Returns the result of :meth:`sort` for inputs whose keys and values are sorted already."""
        order = self.find_order()
        return self if order is None else self._in(order)

    def _in(self, order: MemoryOrder) -> "_Inputs":
        return replace(self, visibility=order.sort_visibility(self.visibility), order=order)

    @property
    def in_front(self) -> tuple[int, ...]:
        """Number of memories of each row, the first ones, that the fused kernel takes."""
        return (0,) * self.query.size(0) if self.order is None else self.order.in_front

    def _visible(self, row: int, start: int) -> int:
        """Counts the last memory slots that hold what queries from ``start`` on see, but for the memories in front."""
        return self.settings.counts[row] if self.order is None else self.order.visible(row, start)

    def _relative_positions(self, tile: Tile, visibility: Visibility) -> RelativePositions:
        position_range = self.positions.size(0)
        memories = MemoryRange(tile.memory, 0)
        if self.order is not None:
            memories = self.order.within(tile, position_range)
        elif self.visibility.min_distance is None:
            # The youngest stand last.
            memories = MemoryRange(min(tile.memory, max(0, position_range - tile.start)), 0)
        return RelativePositions.of(tile, visibility, position_range, memories)

    def tiles(self) -> Iterator["_TileInputs"]:
        """Yields the tiles of all keys but those in front."""
        rows, heads, block = self.query.shape[:3]
        slots = self.key.size(2) - block
        max_scores, max_queries = MAX_SCORES_ELSEWHERE, block
        if self.query.device.type == "cpu":
            max_scores, max_queries = MAX_SCORES_ON_CPU, MAX_QUERIES_ON_CPU
        cut = tiles(rows, self._visible, block=block, heads=heads, max_scores=max_scores, max_queries=max_queries)
        for tile in cut:
            keys = slice(slots - tile.memory, slots + tile.stop)
            visibility = self.visibility.select(tile.rows, keys)
            yield _TileInputs(
                tile=tile,
                queries=(tile.rows, slice(None), slice(tile.start, tile.stop)),
                keys=(tile.rows, slice(None), keys),
                query=self.query[tile.rows, :, tile.start : tile.stop],
                key=self.key[tile.rows, :, keys],
                value=self.value[tile.rows, :, keys],
                visibility=visibility,
                relative=self._relative_positions(tile, visibility),
            )


@dataclass(frozen=True)
class _TileInputs:
    """Inputs of a tile: its part of :class:`_Inputs`, and the place of this part in the whole.

    Args:
        tile: the tile.
        queries, keys: indices of the tile's part in [B, K, T, ...] and [B, K, S, ...].
        query: [n, K, Q, d].
        key, value: [n, K, S, d].
        visibility: of these keys.
        relative: their positions.
    """

    tile: Tile
    queries: tuple[slice, slice, slice]
    keys: tuple[slice, slice, slice]
    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    relative: RelativePositions

    def scores(self, positions: Tensor, workspace: Workspace) -> Tensor:
        """[n, K, Q, S] in float32 or better: s + log m to base 2, -inf for unseen keys."""
        bias = self.visibility.bias(self.tile.start, self.tile.stop)  # [n, H, Q, S]
        scores = workspace.take("scores", (*self.query.shape[:3], bias.size(-1)), bias.dtype)
        self.relative.add_scores(bias, self.query, positions, scores, workspace)
        _add_product(scores, self.query, self.key.transpose(-1, -2))
        return scores


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out [n, K, x, z] = left [n, K, x, y] times right [n, K, y, z]."""
    if out.device.type != "cpu":
        return torch.matmul(left, right, out=out)
    # One matmul over all rows would copy them first: rows and heads cannot be merged into one batch dimension without a
    # copy.
    for row in range(out.size(0)):
        torch.bmm(left[row], right[row], out=out[row])
    return out


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [n, K, x, z] += left [n, K, x, y] times right [n, K, y, z]; a CPU multiplies in the type of the total."""
    if total.device.type != "cpu":
        total += torch.matmul(left, right)
        return
    for row in range(total.size(0)):
        total[row].baddbmm_(left[row].to(total.dtype), right[row].to(total.dtype))


def _keep(probabilities: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """Draws the factors of the probabilities under dropout: 0 or 1 / (1 - dropout)."""
    return torch.empty_like(probabilities).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


def _attend(inputs: _Inputs) -> tuple[Tensor, Tensor]:
    """Computes all tiles.

    Returns:
        the output [B, K, T, d]; and [B, K, T], the log-sum-exp of each query to base 2, inf for a query that sees
        nothing, so that its probabilities come out as 0.
    """
    out, total = attend_fused(inputs.query, inputs.key, inputs.value, counts=inputs.in_front)
    total.mul_(LOG2_E).clamp_(min=NOTHING)
    generator = inputs.settings.generator(out.device)
    workspace = Workspace(out)
    for part in inputs.tiles():
        scores = part.scores(inputs.positions, workspace)
        before, total_before = out[part.queries], total[part.queries].unsqueeze(-1)
        largest = torch.maximum(scores.amax(dim=-1, keepdim=True), total_before)
        probabilities = scores.sub_(largest).exp2_()
        weight = (total_before - largest).exp2_()
        sums = probabilities.sum(dim=-1, keepdim=True).add_(weight)
        if generator is not None:
            probabilities *= _keep(probabilities, inputs.settings.dropout, generator)
        read = _product(probabilities.to(out.dtype), part.value, workspace.take("out", part.query.shape, out.dtype))
        # Rounded once in half precision: sums and weights are in float32.
        before.copy_(torch.addcmul(read.to(sums.dtype), before.to(sums.dtype), weight).div_(sums))
        total_before.copy_(sums.log2_().add_(largest))
    return out, total.masked_fill_(total <= NOTHING, float("inf"))


class _Attention(torch.autograd.Function):
    """:func:`attend` for a scaled query; the span is apart from the rest of its visibility, since it has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        span: Tensor,
        position: Tensor,
        visibility: Visibility,
        settings: _Settings,
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            positions = position.to(query.dtype).flip(0)
            inputs = _Inputs(query, key, value, visibility, positions, settings).sort()
            out, total = _attend(inputs)
        ctx.visibility, ctx.settings = visibility, settings
        ctx.save_for_backward(query, inputs.key, inputs.value, position, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients computed here would silently count as constants.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fast path of attention has first derivatives only, and create_graph=True asks for more: "
                "call fairseq_expire.modules.attention.reference.attend instead"
            )
        query, key, value, position, out, total = ctx.saved_tensors
        visibility, settings, with_spans = ctx.visibility, ctx.settings, ctx.needs_input_grad[3]
        dtype, shared_span = visibility.span.dtype, visibility.span.size(1) == 1
        generator = settings.generator(query.device)
        workspace = Workspace(query)
        with torch.autocast(query.device.type, enabled=False):
            positions = position.to(query.dtype).flip(0)
            inputs = _Inputs(query, key, value, visibility, positions, settings).in_order()
            grad_query, grad_key, grad_value = fused_gradients(
                grad_out, query, key, value, out=out, log_sum=total / LOG2_E, counts=inputs.in_front
            )
            grad_span = torch.zeros_like(visibility.span)
            grad_positions = torch.zeros_like(positions, dtype=dtype)
            for part in inputs.tiles():
                grad = grad_out[part.queries]  # [n, K, Q, d]
                natural_query = part.query / LOG2_E
                scores = part.scores(positions, workspace)
                probabilities = scores.sub_(total[part.queries].unsqueeze(-1)).exp2_()
                # Backward of softmax: subtract from each gradient the row sum of gradient times output.
                offset = (grad.to(dtype) * out[part.queries]).sum(dim=-1, keepdim=True)
                products = workspace.take("products", probabilities.shape, query.dtype)
                # Of the probabilities, then of the scores: [n, K, Q, S].
                grad_scores = _product(grad, part.value.transpose(-1, -2), products).to(dtype)
                used = probabilities
                if generator is not None:
                    keep = _keep(probabilities, settings.dropout, generator)
                    used = probabilities * keep
                    grad_scores *= keep
                grad_scores.sub_(offset).mul_(probabilities)

                _add_product(grad_value[part.keys], used.to(value.dtype).transpose(-1, -2), grad)
                if with_spans:
                    slope = part.visibility.slope(part.tile.start, part.tile.stop)
                    by_head = grad_scores.sum(dim=1, keepdim=True) if shared_span else grad_scores
                    grad_span[part.keys] += (by_head * slope).sum(dim=2)
                grad_scores = grad_scores.to(query.dtype)
                _add_product(grad_key[part.keys], grad_scores.transpose(-1, -2), natural_query)
                by_position = part.relative.gradients(grad_scores, natural_query, positions, workspace)
                by_key = _product(grad_scores, part.key, workspace.take("by_key", part.query.shape, query.dtype))
                grad_query[part.queries] += by_key.add_(by_position.query).div_(LOG2_E)
                grad_positions += by_position.positions
            if inputs.order is not None:
                grad_key, grad_value = inputs.order.unsort(grad_key), inputs.order.unsort(grad_value)
                grad_span = inputs.order.unsort_spans(grad_span)
        grad_position = grad_positions.flip(0).to(position.dtype)
        return grad_query, grad_key, grad_value, grad_span, grad_position, None, None


_apply: Callable[..., Tensor] = _Attention.apply
