"""A layer that reads text block by block and remembers, the same for every policy.

Size legend: B rows, T tokens of a block, M memories, S = M + T, D width, K heads, H heads of a span, P reach of positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules.attention.tiled import attend
from fairseq_expire.modules.layer_memory import LayerMemory
from fairseq_expire.modules.linear import Linear
from fairseq_expire.modules.policies.base import MemoryPolicy
from fairseq_expire.modules.visibility import Visibility, steps_left


@dataclass(frozen=True)
class LayerReport:
    """What happened in a layer while it read a block.

    Args:
        span: [B, T, H], the spans of the block's own states in steps, before any random shortening.
        penalty: [B], the policy's penalty summed over the block, before its weight; or None.
        count_seen: computes :attr:`memory_size`. It is called when that is first read: token-by-token reading seldom needs it.
    """

    span: Tensor
    penalty: Tensor | None
    count_seen: Callable[[], Tensor]

    @cached_property
    def memory_size(self) -> Tensor:
        """[B, T] int64, |C_t|: how many states each query saw."""
        return self.count_seen()


class _Candidates(NamedTuple):
    """What a block may attend to: ``key`` and ``value`` [B, S, D], ``spans`` [B, S, H], and all of it as a memory [B, S, W]."""

    key: Tensor
    value: Tensor
    spans: Tensor
    memory: LayerMemory


class MemoryLayer(nn.Module):
    """Attention over the memory and the block, then a feed-forward network; post-norm or pre-norm.

    Its arguments are those of :class:`MemoryTransformer`, which checks them.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        policy: MemoryPolicy,
        pre_norm: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.pre_norm = pre_norm
        self.attention_dropout = attention_dropout
        self.policy = policy
        self.query_proj = Linear(embed_dim, embed_dim, bias=False)
        self.key_proj = Linear(embed_dim, embed_dim, bias=False)
        self.value_proj = Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = Linear(embed_dim, embed_dim, bias=False)
        self.fc1 = Linear(embed_dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, embed_dim)
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(
        self,
        hidden: Tensor,
        memory: LayerMemory,
        position: Tensor,
        *,
        padding: Tensor | None,
        shortening: float | None,
    ) -> tuple[Tensor, LayerMemory, Tensor, LayerReport]:
        """
        Args:
            hidden: [B, T, D], the block.
            memory: what the layer remembers.
            position: [P, D / K] embeddings of the distances 1..P.
            padding, shortening: as in :meth:`MemoryTransformer.forward`.
        Returns:
            the block's output [B, T, D]; memory and block as one, for the next block; [B, S] bool, what to keep of it; and
            a report.
        """
        block = hidden.size(1)
        states = self.attention_norm(hidden) if self.pre_norm else hidden
        if self.training or torch.is_grad_enabled():
            candidates = self._from_hidden(hidden, states, memory, padding)
        else:
            candidates = self._from_keys(hidden, states, memory, padding)
        age, ramp, longest = candidates.memory.age, self.policy.ramp, self.policy.longest
        # Of what cannot be seen, nothing is computed.
        furthest = memory.oldest + block
        position = position[:furthest]
        if longest is not None and furthest <= longest:
            longest = None
        compressed = None
        if candidates.memory.compressed is not None:
            compressed = self.policy.compressed(candidates.memory.compressed)
        spans = self.policy.shortened(candidates.spans, shortening).transpose(1, 2)  # [B, H, S]
        attended = attend(
            self._heads(self.query_proj(states)),
            self._heads(candidates.key),
            self._heads(candidates.value),
            age=age,
            span=spans,
            ramp=ramp,
            position=position,
            longest=longest,
            compressed=compressed,
            held=[count - block for count in candidates.memory.held],
            dropout=self.attention_dropout if self.training else 0.0,
        )
        left = steps_left(spans.detach(), age, ramp=ramp)
        report = LayerReport(
            span=candidates.spans[:, -block:].detach(),
            penalty=self.policy.penalty(spans, left, age, block=block, padding=padding),
            count_seen=partial(Visibility(left, age, ramp, longest, compressed).sizes, block),
        )
        kept = self.policy.retain(candidates.memory.detach().advance(block), candidates.spans.detach())

        attended = self.dropout(self.out_proj(attended.transpose(1, 2).flatten(2)))  # [B, K, T, d] -> [B, T, D]
        if self.pre_norm:
            middle = hidden + attended
            return (middle + self._feed_forward(self.ffn_norm(middle)), *kept, report)
        middle = self.attention_norm(hidden + attended)
        return (self.ffn_norm(middle + self._feed_forward(middle)), *kept, report)

    def _from_hidden(self, hidden: Tensor, states: Tensor, memory: LayerMemory, padding: Tensor | None) -> _Candidates:
        """With weights that change: keys, values and spans of the memory are those that today's weights give."""
        if memory.spans is not None:
            raise ValueError(
                "this memory was made while scoring and holds keys and values of fixed weights; training needs the states "
                "themselves: start from None, or from a memory made in training mode"
            )
        # A state that overflowed (fp16) is not remembered: the update is skipped, and with it all blocks to come would overflow.
        lost = ~hidden.detach().isfinite().all(dim=-1)
        padding = lost if padding is None else padding | lost
        if self.policy.compresses:
            made = self.policy.compress(memory, hidden, padding)
            memory = memory.with_compressed(made.states, made.age, None)
        # Only what the rows hold, and without the gradient that the memory's own states would get.
        held = memory.flatten()
        if self.pre_norm:
            held = self.attention_norm(held)
        key, value, spans = (
            _joined(of(held), of(states), memory) for of in (self.key_proj, self.value_proj, self.policy)
        )
        memory = memory.extended(hidden, None, padding)
        if memory.compressed is not None:
            spans = spans.masked_fill(memory.compressed.unsqueeze(-1), self.policy.compressed_span)
        return _Candidates(key, value, spans, memory)

    def _from_keys(self, hidden: Tensor, states: Tensor, memory: LayerMemory, padding: Tensor | None) -> _Candidates:
        """With weights that stand still: keys, values and spans are computed once, when a token is read."""
        if memory.spans is None:
            # Made in training, or at the start.
            inputs = memory.flatten()
            held = self.attention_norm(inputs) if self.pre_norm else inputs
            stored = self._stored(inputs, held)
            spans = _joined(self.policy(held), self.policy(states[:, :0]), memory)
            if memory.compressed is not None:
                spans = spans.masked_fill(memory.compressed.unsqueeze(-1), self.policy.compressed_span)
            memory = LayerMemory(
                states=_joined(stored, stored.new_empty(len(states), 0, stored.size(-1)), memory),
                age=memory.age,
                spans=spans,
                compressed=memory.compressed,
                held=memory.held,
                oldest=memory.oldest,
                read=memory.read,
            )
        read = self._stored(hidden, states)
        if memory.states.dtype != read.dtype:
            # Under autocast, or just out of it.
            memory = memory.to(dtype=read.dtype)
        spans = self.policy(states)
        if self.policy.compresses:
            made = self.policy.compress(memory, hidden, padding)
            normed = self.attention_norm(made.states) if self.pre_norm else made.states
            compressed_spans = spans.new_full((*made.age.shape, spans.size(-1)), self.policy.compressed_span)
            memory = memory.with_compressed(self._stored(made.states, normed), made.age, compressed_spans)
        memory = memory.extended(read, spans, padding)
        width = hidden.size(-1)
        key, value = memory.states[..., :width], memory.states[..., width : 2 * width]
        return _Candidates(key, value, memory.spans, memory)

    def _stored(self, hidden: Tensor, states: Tensor) -> Tensor:
        """What is stored while weights stand still: [..., 2 D] keys and values, or with the layer's input [..., 3 D]."""
        parts = [self.key_proj(states), self.value_proj(states)]
        if self.policy.compresses:
            parts.append(hidden.to(parts[0].dtype))
        return torch.cat(parts, dim=-1)

    def _heads(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, K, N, D / K]."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.activation_dropout(F.relu(self.fc1(states)))))


def _joined(held: Tensor, block: Tensor, memory: LayerMemory) -> Tensor:
    """[sum of held, W] of the memory's rows and [B, T, W] of the block -> [B, M + T, W], zeros in the empty slots."""
    slots = memory.age.size(1)
    parts = []
    for old, new in zip(held.split(memory.held), block):
        parts += [old.new_zeros(slots - len(old), old.size(-1)), old, new]
    return torch.cat(parts).view(block.size(0), slots + block.size(1), block.size(-1))
