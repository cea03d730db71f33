"""Attention of a block over its memory: the hot path, in one place.

Size legend: B rows, K heads, H heads of a span (1 or K), T queries, S candidates (memory and block), d width of a head,
P reach of positions. A piece (see pieces.py) has n rows, Q queries and as many of the candidates as these can see.

Where it pays, memories are put in order first (arrangement.py). Then *steady* ones, which the whole block sees in full and without a
position, are left to a fused kernel (fused.py), if there is one. All others are computed step by step, piece by piece, and of memories
in order a piece leaves out those that are gone. Of [T, S] only the logarithm of each query's sum is kept: backward computes scores
again. Spans, masks and softmax are in float32 or better.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_expire.modules.attention.fused import attend_steady, steady_gradients
from fairseq_expire.modules.attention.inputs import LOG2_E, Inputs, Settings, Work
from fairseq_expire.modules.attention.position_scores import position_gradients, put_position_scores
from fairseq_expire.modules.attention.tiles import Workspace
from fairseq_expire.modules.visibility import Visibility

# log2 of a query's sum as long as it has seen nothing: below that of every sum, and yet a number.
NOTHING = -1e30


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
    """m softmax(s) / sum(m softmax(s)) over the past of each query, applied to the values.

    s = (q_t . k_i + q_t . p(t - i)) / sqrt(d), and m = clamp(1 + (e_i - (t - i)) / R, 0, 1) is the soft mask (section 4.1). A
    query sees only what is at least one step back; one that sees nothing gets zeros.

    Args:
        query: [B, K, T, d].
        key: [B, K, S, d]; the last T candidates are the block itself, oldest first as all are.
        value: [B, K, S, d].
        visibility: of the S candidates to the T queries.
        position: [P, d], row n - 1 is p(n), the embedding of distance n; older candidates are scored without one.
        counts: how many of the S - T memories each row holds, its youngest slots; all of them if None. The rest has to be finite,
            does not count, and costs next to nothing where all rows lack it.
        dropout: share of attention probabilities dropped.
    Returns:
        [B, K, T, d].
    Raises:
        ValueError: if ``counts`` does not say for each row how many of the S - T memories it has.
    """
    batch, _, block, width = query.shape
    memories = key.size(2) - block
    if counts is None:
        counts = [memories] * batch
    elif len(counts) != batch or not all(0 <= count <= memories for count in counts):
        raise ValueError(f"counts: expected a number from 0 to {memories} for each of {batch} rows, got {list(counts)}")
    # Drawn where no device needs to be waited for; backward draws the same probabilities to drop again.
    seed = int(torch.randint(1 << 62, ()).item()) if dropout else 0
    settings = Settings(tuple(counts), dropout, seed)
    span = visibility.span.to(torch.promote_types(query.dtype, torch.float32))
    # Fused kernels take for granted that the numbers of a vector lie side by side.
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (query * (LOG2_E * width**-0.5), key, value)
    )
    return _Attention.apply(query, key, value, span, position, visibility.detach(), settings)


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out [n, K, x, z] = left [n, K, x, y] times right [n, K, y, z]."""
    if out.device.type != "cpu":
        return torch.matmul(left, right, out=out)
    # All rows at once would be copied first: their heads do not lie behind each other.
    for row in range(out.size(0)):
        torch.bmm(left[row], right[row], out=out[row])
    return out


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [n, K, x, z] += left [n, K, x, y] times right [n, K, y, z], multiplied in the type of the total on a CPU."""
    if total.device.type != "cpu":
        total += torch.matmul(left, right)
        return
    for row in range(total.size(0)):
        total[row].baddbmm_(left[row].to(total.dtype), right[row].to(total.dtype))


def _scores(work: Work, inputs: Inputs, scratch: Workspace) -> Tensor:
    """[n, K, Q, S] in float32 or better: log2 of what the softmax makes shares of, -inf for what is not seen."""
    piece = work.piece
    shared = work.visibility.bias(piece.first, piece.last)  # [n, H, Q, S]
    scores = scratch.take("scores", (*work.query.shape[:3], shared.size(-1)), shared.dtype)
    put_position_scores(scores, shared, work.query, inputs.positions, piece, work.reach, scratch)
    _add_product(scores, work.query, work.key.transpose(-1, -2))
    return scores


def _keep(probabilities: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """What the probabilities are multiplied with under dropout: 0 or 1 / (1 - share)."""
    return torch.empty_like(probabilities).bernoulli_(1 - share, generator=generator).div_(1 - share)


def _generator(settings: Settings, device: torch.device) -> torch.Generator | None:
    return torch.Generator(device).manual_seed(settings.seed) if settings.dropout else None


def _attend(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """[B, K, T, d] and [B, K, T]: what attention gives, and log2 of each query's sum; inf for a query that sees nothing, so
    that its probabilities come out as 0."""
    out, total = attend_steady(inputs.query, inputs.key, inputs.value, counts=inputs.steady)
    total.mul_(LOG2_E).clamp_(min=NOTHING)
    generator = _generator(inputs.settings, out.device)
    scratch = Workspace(out)
    for work in inputs.work():
        scores = _scores(work, inputs, scratch)
        before, total_before = out[work.queries], total[work.queries].unsqueeze(-1)
        largest = torch.maximum(scores.amax(dim=-1, keepdim=True), total_before)
        probabilities = scores.sub_(largest).exp2_()
        weight = (total_before - largest).exp2_()
        sums = probabilities.sum(dim=-1, keepdim=True).add_(weight)
        if generator is not None:
            probabilities *= _keep(probabilities, inputs.settings.dropout, generator)
        seen = _product(probabilities.to(out.dtype), work.value, scratch.take("out", work.query.shape, out.dtype))
        # Rounded once in half precision: sums and weights are in float32.
        before.copy_(torch.addcmul(seen.to(sums.dtype), before.to(sums.dtype), weight).div_(sums))
        total_before.copy_(sums.log2_().add_(largest))
    return out, total.masked_fill_(total <= NOTHING, float("inf"))


class _Attention(torch.autograd.Function):
    """See :func:`attend`; the query comes scaled, as in :class:`Inputs`."""

    @staticmethod
    def forward(ctx, query, key, value, span, position, visibility, settings):
        with torch.autocast(query.device.type, enabled=False):
            inputs = Inputs.of(query, key, value, replace(visibility, span=span), position, settings).arranged()
            out, total = _attend(inputs)
        ctx.settings, ctx.visibility = settings, visibility
        ctx.save_for_backward(query, inputs.key, inputs.value, span, position, visibility.age, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        query, key, value, span, position, age, out, total = ctx.saved_tensors
        settings, with_spans = ctx.settings, ctx.needs_input_grad[3]
        visibility = replace(ctx.visibility, span=span, age=age)
        generator = _generator(settings, query.device)
        scratch = Workspace(query)
        with torch.autocast(query.device.type, enabled=False):
            inputs = Inputs.of(query, key, value, visibility, position, settings).in_order()
            grad_query, grad_key, grad_value = steady_gradients(
                grad_out, (query, key, value), (out, total / LOG2_E), counts=inputs.steady
            )
            grad_span = torch.zeros_like(inputs.visibility.span)
            grad_positions = torch.zeros_like(inputs.positions, dtype=span.dtype)
            for work in inputs.work():
                piece, grad = work.piece, grad_out[work.queries]  # [n, K, Q, d]
                natural_query = work.query / LOG2_E
                scores = _scores(work, inputs, scratch)
                probabilities = scores.sub_(total[work.queries].unsqueeze(-1)).exp2_()
                # How much each query's output follows its own gradient: the softmax takes it off every score.
                offset = (grad.to(span.dtype) * out[work.queries]).sum(dim=-1, keepdim=True)
                products = scratch.take("products", probabilities.shape, query.dtype)
                grad_scores = _product(grad, work.value.transpose(-1, -2), products).to(
                    span.dtype
                )  # of the probabilities
                used = probabilities
                if generator is not None:
                    keep = _keep(probabilities, settings.dropout, generator)
                    used = probabilities * keep
                    grad_scores *= keep
                grad_scores.sub_(offset).mul_(probabilities)  # [n, K, Q, S]

                _add_product(grad_value[work.candidates], used.to(value.dtype).transpose(-1, -2), grad)
                if with_spans:
                    slope = work.visibility.slope(piece.first, piece.last)
                    shared = grad_scores.sum(dim=1, keepdim=True) if span.size(1) == 1 else grad_scores
                    grad_span[work.candidates] += (shared * slope).sum(dim=2)
                grad_scores = grad_scores.to(query.dtype)
                _add_product(grad_key[work.candidates], grad_scores.transpose(-1, -2), natural_query)
                by_position, of_position = position_gradients(
                    grad_scores, natural_query, inputs.positions, piece, work.reach, scratch
                )
                by_key = _product(grad_scores, work.key, scratch.take("by_key", work.query.shape, query.dtype))
                grad_query[work.queries] += by_key.add_(by_position).div_(LOG2_E)
                grad_positions += of_position
            if inputs.arrangement is not None:
                grad_key, grad_value = (inputs.arrangement.restored(grad) for grad in (grad_key, grad_value))
                grad_span = inputs.arrangement.restored_span(grad_span)
        grad_position = grad_positions.flip(0).to(position.dtype)
        return grad_query, grad_key, grad_value, grad_span, grad_position, None, None
