"""Attention of a block over its memory: the hot path, in one place.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates (memory and block), d width of a head,
P reach of positions. A piece (see pieces.py) has n rows, Q queries and as many of the candidates as these can see.

Memories that are too old for a position go to a fused kernel where there is one (far.py). The rest, *near* candidates, is gone
through piece by piece, with what the far ones give as one more candidate. Nothing of size [T, S] is kept: backward computes
scores again. Spans, masks and softmax are in float32 or better.
"""

from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .far import FarGradients, add_far_gradients, attend_far, has_fused_kernel
from .pieces import Piece, Scratch, pieces
from .positions import Reach, add_position_scores, padded_positions, position_gradients, reach_of
from .soft_mask import soft_mask_bias, soft_mask_slope, steps_left


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    age: Tensor,
    span: Tensor,
    ramp: float,
    position: Tensor,
    held: Optional[Sequence[int]] = None,
    dropout: float = 0.0,
) -> Tensor:
    """m softmax(s) / sum(m softmax(s)) over the past of each query, applied to the values.

    s = (q_t . k_i + q_t . p(t - i)) / sqrt(d), and m = clamp(1 + (e_i - (t - i)) / R, 0, 1) is the soft mask (section 4.1). A
    query sees only what is at least one step back; one that sees nothing gets zeros.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d]; the last T candidates are the block itself, oldest first as all are.
        value: [B, K, S, d].
        age: [B, S] int64, steps back from the first query; 0, -1, ... for the block.
        span: [B, H, S] e_i in steps, one for each head (H = K) or for all (H = 1).
        ramp: R, in steps; 1 is a hard edge.
        position: [P, d], row n - 1 is p(n), the embedding of distance n; older candidates are scored without one.
        held: how many of the S - T memories each row holds, its youngest slots; all of them if None. The rest has to be finite,
            does not count, and costs nothing where all rows lack it.
        dropout: share of attention probabilities dropped.
    Returns:
        [B, K, T, d].
    """
    batch, _, block, width = query.shape
    if held is None:
        held = [key.size(2) - block] * batch
    # Drawn where no device needs to be waited for; backward draws the same probabilities to drop again.
    seed = int(torch.randint(1 << 62, ()).item()) if dropout else 0
    settings = _Settings(float(ramp), tuple(held), dropout, seed)
    span = span.to(torch.promote_types(query.dtype, torch.float32))
    # Fused kernels take for granted that the numbers of a vector lie side by side.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query * width**-0.5, key, value))
    return _Attention.apply(query, key, value, span, position, age, settings)


class _Settings(NamedTuple):
    ramp: float
    held: Tuple[int, ...]
    dropout: float
    seed: int

    def near_slots(self, query: Tensor, key: Tensor, position: Tensor) -> int:
        """How many of the youngest memory slots are not left to the fused kernel."""
        slots, reach = key.size(2) - query.size(2), position.size(0)
        return reach if slots > reach and has_fused_kernel(query, self.dropout) else slots


@dataclass(frozen=True)
class _Work:
    """A piece with its inputs: ``query`` [n, K, Q, d], ``key`` and ``value`` [n, K, S, d], ``left`` [n, H, S]."""

    piece: Piece
    candidates: slice
    query: Tensor
    key: Tensor
    value: Tensor
    left: Tensor
    far_total: Tensor
    reach: Reach


def _work(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    left: Tensor,
    age: Tensor,
    far_total: Tensor,
    *,
    near: int,
    position_range: int,
    settings: _Settings,
) -> Iterator[_Work]:
    """The pieces of the near candidates: the block and the youngest ``near`` slots of the memory."""
    heads, block = query.shape[1:3]
    own = key.size(2) - block
    held = [min(count, near) for count in settings.held]
    for piece in pieces(held, block=block, heads=heads, on_cpu=query.device.type == "cpu"):
        seen = slice(own - piece.memory, own + piece.last)
        yield _Work(
            piece=piece,
            candidates=seen,
            query=query[piece.rows, :, piece.first : piece.last],
            key=key[piece.rows, :, seen],
            value=value[piece.rows, :, seen],
            left=left[piece.rows, :, seen],
            far_total=far_total[piece.rows, :, piece.first : piece.last],
            reach=reach_of(piece, age[piece.rows, seen], position_range),
        )


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out [n, K, x, z] = left [n, K, x, y] times right [n, K, y, z]."""
    if out.device.type != "cpu":
        return torch.matmul(left, right, out=out)
    # All rows at once would be copied first: their heads do not lie behind each other.
    for row in range(out.size(0)):
        torch.bmm(left[row], right[row], out=out[row])
    return out


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [n, K, x, z] += left [n, K, x, y] times right [n, K, y, z]."""
    if total.device.type != "cpu":
        total += torch.matmul(left, right)
        return
    for row in range(total.size(0)):
        total[row].baddbmm_(left[row], right[row])


def _probabilities(work: _Work, positions: Tensor, ramp: float, scratch: Scratch) -> Tuple[Tensor, Tensor]:
    """Attention probabilities [n, K, Q, 1 + S] in float32 or better, the first for all far memories together; and
    [n, K, Q, 1] bool: the queries that see nothing."""
    piece, dtype = work.piece, work.left.dtype
    bias = soft_mask_bias(work.left, piece.first, piece.last, ramp=ramp)  # [n, H, Q, S]
    queries = bias.size(2)
    # Of the block, a query sees what comes before it.
    future = torch.ones(queries, queries, dtype=torch.bool, device=bias.device).triu_()
    bias[..., bias.size(-1) - queries :].masked_fill_(future, float("-inf"))

    shape, memories_and_block = work.query.shape[:3], work.key.size(2)
    products = scratch.take("products", (*shape, memories_and_block), work.query.dtype)
    _product(work.query, work.key.transpose(-1, -2), products)
    every = scratch.take("scores", (*shape, 1 + memories_and_block), dtype)
    every[..., 0] = work.far_total
    scores = torch.add(products, bias, out=every[..., 1:])
    add_position_scores(scores, work.query, positions, piece, work.reach, scratch)
    blind = (bias.amax(dim=-1, keepdim=True) == float("-inf")) & (every[..., :1] == float("-inf"))
    if bias.device.type != "cpu" or blind.any():
        # Any probabilities will do, as long as they are numbers: they are not used.
        every.masked_fill_(blind, 0.0)
    return torch.softmax(every, dim=-1, out=every), blind


def _keep(probabilities: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """What the probabilities are multiplied with under dropout: 0 or 1 / (1 - share)."""
    return torch.empty_like(probabilities).bernoulli_(1 - share, generator=generator).div_(1 - share)


def _generator(settings: _Settings, device: torch.device) -> Optional[torch.Generator]:
    return torch.Generator(device).manual_seed(settings.seed) if settings.dropout else None


class _Attention(torch.autograd.Function):
    """See :func:`attend`; the query comes scaled."""

    @staticmethod
    def forward(ctx, query, key, value, span, position, age, settings):
        positions = padded_positions(position.to(query.dtype), query.size(2))
        generator = _generator(settings, query.device)
        near = settings.near_slots(query, key, position)
        border = key.size(2) - query.size(2) - near
        scratch = Scratch(query)
        with torch.autocast(query.device.type, enabled=False):
            left = steps_left(span, age, ramp=settings.ramp)
            far = query, key[:, :, :border], value[:, :, :border], left[..., :border]
            held = [max(0, count - near) for count in settings.held]
            out, far_total = attend_far(*far, held=held, ramp=settings.ramp)
            reach = dict(near=near, position_range=position.size(0), settings=settings)
            for work in _work(query, key, value, left, age, far_total, **reach):
                probabilities, blind = _probabilities(work, positions, settings.ramp, scratch)
                of_far, probabilities = probabilities[..., :1], probabilities[..., 1:]
                if generator is not None:
                    probabilities *= _keep(probabilities, settings.dropout, generator)
                of_near = scratch.take("of_near", work.query.shape, query.dtype)
                _product(probabilities.to(value.dtype), work.value, of_near)
                part = out[work.piece.rows, :, work.piece.first : work.piece.last]
                part.mul_(of_far).add_(of_near).masked_fill_(blind, 0.0)
        ctx.settings = settings
        ctx.save_for_backward(query, key, value, span, position, age, out, far_total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        query, key, value, span, position, age, out, far_total = ctx.saved_tensors
        settings = ctx.settings
        positions = padded_positions(position.to(query.dtype), query.size(2))
        generator = _generator(settings, query.device)
        near = settings.near_slots(query, key, position)
        border = key.size(2) - query.size(2) - near
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_positions = torch.zeros_like(positions, dtype=span.dtype)
        total = torch.empty_like(far_total)
        scratch = Scratch(query)
        with torch.autocast(query.device.type, enabled=False):
            left = steps_left(span, age, ramp=settings.ramp)
            grad_left = torch.zeros_like(left)
            reach = dict(near=near, position_range=position.size(0), settings=settings)
            for work in _work(query, key, value, left, age, far_total, **reach):
                piece = work.piece
                probabilities, blind = _probabilities(work, positions, settings.ramp, scratch)
                queries = (piece.rows, slice(None), slice(piece.first, piece.last))
                share = probabilities[..., 0].masked_fill(blind.squeeze(-1), 0.0)
                total[queries] = torch.where(share > 0, work.far_total - share.log(), float("inf"))
                probabilities = probabilities[..., 1:]
                grad = grad_out[queries].masked_fill(blind, 0.0)  # [n, K, Q, d]
                # How much each query's output follows its own gradient: the softmax takes it off every score.
                offset = (grad.to(left.dtype) * out[queries]).sum(dim=-1, keepdim=True)
                # Of the probabilities; the products are not needed any more.
                grad_scores = scratch.take("products", probabilities.shape, query.dtype)
                grad_scores = _product(grad, work.value.transpose(-1, -2), grad_scores).to(left.dtype)
                used = probabilities
                if generator is not None:
                    keep = _keep(probabilities, settings.dropout, generator)
                    used = probabilities * keep
                    grad_scores *= keep
                grad_scores.sub_(offset).mul_(probabilities)  # [n, K, Q, S]

                used = used.to(value.dtype).transpose(-1, -2)
                _add_product(grad_value[piece.rows, :, work.candidates], used, grad)
                if ctx.needs_input_grad[3]:
                    slope = soft_mask_slope(work.left, piece.first, piece.last, ramp=settings.ramp)
                    shared = grad_scores.sum(dim=1, keepdim=True) if left.size(1) == 1 else grad_scores
                    grad_left[piece.rows, :, work.candidates] += (shared * slope).sum(dim=2)
                grad_scores = grad_scores.to(query.dtype)
                _add_product(grad_key[piece.rows, :, work.candidates], grad_scores.transpose(-1, -2), work.query)
                by_near = _product(grad_scores, work.key, scratch.take("by_near", work.query.shape, query.dtype))
                by_position, of_position = position_gradients(
                    grad_scores, work.query, positions, piece, work.reach, scratch
                )
                torch.add(by_near, by_position, out=grad_query[queries])
                grad_positions[: len(of_position)] += of_position
            far = [tensor[:, :, :border] for tensor in (key, value, left)]
            into = FarGradients(grad_query, *(tensor[:, :, :border] for tensor in (grad_key, grad_value, grad_left)))
            add_far_gradients(
                into,
                grad_out,
                query,
                *far,
                out=out,
                total=total,
                held=[max(0, count - near) for count in settings.held],
                ramp=settings.ramp,
                with_spans=ctx.needs_input_grad[3],
            )
        grad_position = grad_positions[: position.size(0)].flip(0).to(position.dtype)
        return grad_query, grad_key, grad_value, grad_left, grad_position, None, None
