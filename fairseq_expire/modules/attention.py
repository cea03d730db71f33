"""Attention of a block over its memory: the hot path, in one place.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates (memory and block), d width of a head,
P reach of positions. A piece (see pieces.py) has n rows, Q queries and as many of the candidates as these can see.

Forward and backward go through the block piece by piece and keep nothing of size [T, S]: backward computes the scores of a
piece again. Every operation is a plain one of PyTorch, in float32 or better where spans, masks and softmax are concerned.
"""

import math
from dataclasses import dataclass
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pieces import Piece, pieces
from .positions import Reach, add_position_scores, position_gradients, reach_of
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
        held: how many of the S - T memories each row holds, its youngest slots; all of them if None. The rest is not read.
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
    return _Attention.apply(query * width**-0.5, key, value, span, position, age, settings)


class _Settings(NamedTuple):
    ramp: float
    held: Tuple[int, ...]
    dropout: float
    seed: int


class _Scratch:
    """Room for the scores of one piece at a time, by name, used again from piece to piece.

    Fresh memory costs a CPU more than the arithmetic done on it.
    """

    def __init__(self, like: Tensor):
        self.like = like
        self.rooms: Dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        room = self.rooms.get(name)
        if room is None or room.numel() < size:
            room = self.rooms[name] = self.like.new_empty(size)
        return room[:size].view(shape)


@dataclass(frozen=True)
class _Work:
    """A piece with its inputs: ``query`` [n, K, Q, d], ``key`` and ``value`` [n, K, S, d], ``left`` [n, H, S]."""

    piece: Piece
    candidates: slice
    query: Tensor
    key: Tensor
    value: Tensor
    left: Tensor
    reach: Reach


def _work(query, key, value, left, age, position_range: int, settings: _Settings) -> Iterator[_Work]:
    heads, block = query.shape[1:3]
    own = key.size(2) - block
    for piece in pieces(settings.held, block=block, heads=heads, on_cpu=query.device.type == "cpu"):
        seen = slice(own - piece.memory, own + piece.last)
        yield _Work(
            piece=piece,
            candidates=seen,
            query=query[piece.rows, :, piece.first : piece.last],
            key=key[piece.rows, :, seen],
            value=value[piece.rows, :, seen],
            left=left[piece.rows, :, seen],
            reach=reach_of(piece, age[piece.rows, seen], position_range),
        )


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out [n, K, x, z] = left [n, K, x, y] times right [n, K, y, z]."""
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.flatten(0, 1))
    return out


def _probabilities(work: _Work, from_far: Tensor, ramp: float, scratch: _Scratch) -> Tuple[Tensor, Tensor]:
    """[n, K, Q, S] attention probabilities in float32 or better, and [n, H, Q, 1] bool: the queries that see nothing."""
    piece, dtype = work.piece, work.left.dtype
    bias = soft_mask_bias(work.left, piece.first, piece.last, ramp=ramp)  # [n, H, Q, S]
    queries = bias.size(2)
    # Of the block, a query sees what comes before it.
    future = torch.ones(queries, queries, dtype=torch.bool, device=bias.device).triu_()
    bias[..., bias.size(-1) - queries :].masked_fill_(future, float("-inf"))
    blind = bias.amax(dim=-1, keepdim=True) == float("-inf")
    if bias.device.type != "cpu" or blind.any():
        # Any probabilities will do, as long as they are numbers: they are not used.
        bias.masked_fill_(blind, 0.0)

    scores = scratch.take("scores", (*work.query.shape[:3], work.key.size(2)))
    scores = _product(work.query, work.key.transpose(-1, -2), scores).to(dtype)
    scores += bias
    add_position_scores(scores, work.query, from_far, piece, work.reach)
    return torch.softmax(scores, dim=-1, out=scores), blind


def _keep(probabilities: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """What the probabilities are multiplied with under dropout: 0 or 1 / (1 - share)."""
    return torch.empty_like(probabilities).bernoulli_(1 - share, generator=generator).div_(1 - share)


def _generator(settings: _Settings, device: torch.device) -> Optional[torch.Generator]:
    return torch.Generator(device).manual_seed(settings.seed) if settings.dropout else None


class _Attention(torch.autograd.Function):
    """See :func:`attend`; the query comes scaled."""

    @staticmethod
    def forward(ctx, query, key, value, span, position, age, settings):
        from_far = position.flip(0).to(query.dtype)
        generator = _generator(settings, query.device)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        scratch = _Scratch(query)
        with torch.autocast(query.device.type, enabled=False):
            left = steps_left(span, age, ramp=settings.ramp)
            for work in _work(query, key, value, left, age, position.size(0), settings):
                probabilities, blind = _probabilities(work, from_far, settings.ramp, scratch)
                if generator is not None:
                    probabilities *= _keep(probabilities, settings.dropout, generator)
                part = torch.matmul(probabilities.to(value.dtype), work.value)
                out[work.piece.rows, :, work.piece.first : work.piece.last] = part.masked_fill_(blind, 0.0)
        ctx.settings = settings
        ctx.save_for_backward(query, key, value, span, position, age, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        query, key, value, span, position, age, out = ctx.saved_tensors
        settings = ctx.settings
        from_far = position.flip(0).to(query.dtype)
        generator = _generator(settings, query.device)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_from_far = torch.zeros_like(from_far, dtype=span.dtype)
        scratch = _Scratch(query)
        with torch.autocast(query.device.type, enabled=False):
            left = steps_left(span, age, ramp=settings.ramp)
            grad_span = torch.zeros_like(left)
            for work in _work(query, key, value, left, age, position.size(0), settings):
                piece = work.piece
                probabilities, blind = _probabilities(work, from_far, settings.ramp, scratch)
                queries = (piece.rows, slice(None), slice(piece.first, piece.last))
                grad = grad_out[queries].masked_fill(blind, 0.0)  # [n, K, Q, d]
                # How much each query's output follows its own gradient: the softmax takes it off every score.
                offset = (grad.to(left.dtype) * out[queries]).sum(dim=-1, keepdim=True)
                grad_scores = scratch.take("grad_scores", probabilities.shape)
                grad_scores = _product(grad, work.value.transpose(-1, -2), grad_scores).to(left.dtype)  # of the probabilities
                used = probabilities
                if generator is not None:
                    keep = _keep(probabilities, settings.dropout, generator)
                    used = probabilities * keep
                    grad_scores *= keep
                grad_scores.sub_(offset).mul_(probabilities)  # [n, K, Q, S]

                _accumulate(grad_value[piece.rows, :, work.candidates], used.to(value.dtype), grad)
                if ctx.needs_input_grad[3]:
                    slope = soft_mask_slope(work.left, piece.first, piece.last, ramp=settings.ramp)
                    shared = grad_scores.sum(dim=1, keepdim=True) if left.size(1) == 1 else grad_scores
                    grad_span[piece.rows, :, work.candidates] += (shared * slope).sum(dim=2)
                grad_scores = grad_scores.to(query.dtype)
                _accumulate(grad_key[piece.rows, :, work.candidates], grad_scores, work.query)
                by_position, grad_position = position_gradients(grad_scores, work.query, from_far, piece, work.reach)
                grad_query[queries] = torch.matmul(grad_scores, work.key).add_(by_position)
                grad_from_far += grad_position
        return grad_query, grad_key, grad_value, grad_span, grad_from_far.flip(0).to(position.dtype), None, None


def _accumulate(total: Tensor, weights: Tensor, states: Tensor) -> None:
    """total [n, K, S, d] += weights [n, K, Q, S] transposed times states [n, K, Q, d]."""
    if total.size(0) == 1:
        total[0].baddbmm_(weights[0].transpose(-1, -2), states[0])
    else:
        total += torch.matmul(weights.transpose(-1, -2), states)
