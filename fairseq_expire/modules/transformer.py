"""A layer and a stack of layers that read text block by block and remember, the same for every policy.

Size legend: B rows, T tokens of a block, M memories, S = M + T, D width, K heads, H heads of a span, P reach of positions.
"""

from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend
from .memory import SLACK, LayerMemory, Memory
from .policy import MemoryPolicy
from .soft_mask import memory_sizes, steps_left


@dataclass(frozen=True)
class LayerReport:
    """What happened in one layer while a block was read.

    Args:
        memory_size: [B, T] int64, |C_t|: how many states each query saw.
        span: [B, T, H], how long the block's own states will stay, in steps, before any random shortening.
        penalty: [B], the policy's penalty summed over the block, before its weight, or None.
    """

    memory_size: Tensor
    span: Tensor
    penalty: Optional[Tensor]


@dataclass(frozen=True)
class StackOutput:
    """A block read: its output states [B, T, D], the memory to read on from, and a report for each layer."""

    hidden: Tensor
    memory: Memory
    reports: Tuple[LayerReport, ...]


class _Candidates(NamedTuple):
    """What a block may attend to: ``key`` and ``value`` [B, S, D], ``spans`` [B, S, H], and it all as a memory [B, S, W]."""

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
        self.query_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)
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
        padding: Optional[Tensor],
        shortening: Optional[float],
    ) -> Tuple[Tensor, LayerMemory, Tensor, LayerReport]:
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
            candidates = self._from_keys(states, memory, padding)
        age, ramp = candidates.memory.age, self.policy.ramp
        spans = self.policy.shortened(candidates.spans, shortening).transpose(1, 2)  # [B, H, S]
        attended = attend(
            self._heads(self.query_proj(states)),
            self._heads(candidates.key),
            self._heads(candidates.value),
            age=age,
            span=spans,
            ramp=ramp,
            position=position,
            held=memory.held,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        left = steps_left(spans.detach(), age, ramp=ramp)
        report = LayerReport(
            memory_size=memory_sizes(left, age, block),
            span=candidates.spans[:, -block:].detach(),
            penalty=self.policy.penalty(spans, left, age, block=block, padding=padding),
        )
        kept = self.policy.retain(candidates.memory.detach().aged(block), candidates.spans.detach())

        attended = self.dropout(self.out_proj(attended.transpose(1, 2).flatten(2)))  # [B, K, T, d] -> [B, T, D]
        if self.pre_norm:
            middle = hidden + attended
            return (middle + self._feed_forward(self.ffn_norm(middle)), *kept, report)
        middle = self.attention_norm(hidden + attended)
        return (self.ffn_norm(middle + self._feed_forward(middle)), *kept, report)

    def _from_hidden(
        self, hidden: Tensor, states: Tensor, memory: LayerMemory, padding: Optional[Tensor]
    ) -> _Candidates:
        """With weights that change: keys, values and spans of the memory are those that today's weights give."""
        if memory.spans is not None:
            raise ValueError(
                "this memory was made while scoring and holds keys and values of fixed weights; training needs the states "
                "themselves: start from None, or from a memory made in training mode"
            )
        # Only what the rows hold, and without the gradient that the memory's own states would get.
        held = memory.packed()
        if self.pre_norm:
            held = self.attention_norm(held)
        parts = (
            _joined(of(held), of(states), memory) for of in (self.key_proj, self.value_proj, self.policy.spans)
        )
        return _Candidates(*parts, memory.extended(hidden, None, padding))

    def _from_keys(self, states: Tensor, memory: LayerMemory, padding: Optional[Tensor]) -> _Candidates:
        """With weights that stand still: keys, values and spans are computed once, when a token is read."""
        if memory.spans is None:
            held = memory.packed()
            if self.pre_norm:
                held = self.attention_norm(held)
            memory = LayerMemory(
                states=_joined(self._key_value(held), states.new_empty(len(states), 0, 2 * states.size(-1)), memory),
                age=memory.age,
                spans=_joined(self.policy.spans(held), self.policy.spans(states[:, :0]), memory),
                held=memory.held,
            )
        key_value = self._key_value(states)
        if memory.states.dtype != key_value.dtype:
            # Under autocast, or just out of it.
            memory = memory.to(dtype=key_value.dtype)
        memory = memory.extended(key_value, self.policy.spans(states), padding)
        key, value = memory.states.chunk(2, dim=-1)
        return _Candidates(key, value, memory.spans, memory)

    def _key_value(self, states: Tensor) -> Tensor:
        return torch.cat([self.key_proj(states), self.value_proj(states)], dim=-1)

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


class MemoryTransformer(nn.Module):
    """A stack of layers that reads a stream block by block: ``hidden, memory -> hidden, memory``.

    With fixed weights the output does not depend on how the stream is cut into blocks.

    Args:
        embed_dim: D.
        num_heads: K; divides ``embed_dim``.
        ffn_dim: width inside the feed-forward networks.
        num_layers: number of layers.
        position_range: P, how many steps back attention knows the distance; shared by layers and heads.
        policy: makes the memory policy of one layer; called once for each.
        pre_norm: layer norm before the sublayers (and once after the last) instead of after them.
        dropout: on the output of each sublayer.
        attention_dropout: on attention probabilities.
        activation_dropout: inside the feed-forward networks.
        checkpoint_activations: keep nothing inside a layer for backward, and run it again there.
    Raises:
        ValueError: if a size is not positive, heads do not divide the width or a dropout is outside [0, 1).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        position_range: int,
        policy: Callable[[], MemoryPolicy],
        pre_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        sizes = dict(
            embed_dim=embed_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            position_range=position_range,
        )
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if embed_dim % num_heads:
            raise ValueError(
                f"the heads share the width: num_heads must divide embed_dim, got {num_heads} heads and width {embed_dim}"
            )
        shares = dict(dropout=dropout, attention_dropout=attention_dropout, activation_dropout=activation_dropout)
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is a share: expected 0 <= {name} < 1, got {value}")
        self.embed_dim = embed_dim
        self.position_range = position_range
        self.checkpoint_activations = checkpoint_activations
        head_dim = embed_dim // num_heads
        # As large as a query: from the first update a head can tell one step back from two.
        self.position = nn.Parameter(torch.randn(position_range, head_dim))
        self.layers = nn.ModuleList(
            MemoryLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                policy=policy(),
                pre_norm=pre_norm,
                **shares,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(embed_dim) if pre_norm else None

    def forward(
        self,
        hidden: Tensor,
        memory: Optional[Memory] = None,
        *,
        padding: Optional[Tensor] = None,
        shortening: Optional[float] = None,
    ) -> StackOutput:
        """Reads one block.

        Args:
            hidden: [B, T, D], embedded tokens; T may differ from block to block.
            memory: what the previous block returned; None at the start of a stream.
            padding: [B, T] bool, True where a row has no token: nothing is remembered of it and nothing sees it.
            shortening: share of L in [0, 1) to which spans are cut in this block; None draws it in training if the
                policy asks for it (section 4.2).
        Returns:
            the output states, the new memory (without gradient) and a report for each layer.
        Raises:
            ValueError: if the block or the memory does not fit the model.
        """
        if hidden.dim() != 3 or hidden.size(1) < 1 or hidden.size(2) != self.embed_dim:
            raise ValueError(
                f"a block is [B, T, {self.embed_dim}] with at least one token a row, got {list(hidden.shape)}"
            )
        batch, block, _ = hidden.shape
        shape = dict(batch=batch, num_layers=len(self.layers), embed_dim=self.embed_dim)
        if memory is None:
            memory = Memory.empty(**shape, like=hidden)
        memory.check_fits(**shape)
        if shortening is None and self.training:
            shortening = self.layers[0].policy.draw_shortening()

        candidates: List[Tuple[LayerMemory, Tensor]] = []
        reports: List[LayerReport] = []
        for layer, held in zip(self.layers, memory.layers):
            arguments = dict(padding=padding, shortening=shortening)
            if self.checkpoint_activations and torch.is_grad_enabled():
                read = checkpoint(layer, hidden, held, self.position, use_reentrant=False, **arguments)
            else:
                read = layer(hidden, held, self.position, **arguments)
            hidden, extended, keep, report = read
            candidates.append((extended, keep))
            reports.append(report)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)

        # The one point where the device is waited for: how many memories each row of each layer keeps.
        counts = torch.stack([keep.sum(dim=1) for _, keep in candidates]).tolist()
        kept = tuple(_kept(*layer, tuple(rows), block=block) for layer, rows in zip(candidates, counts))
        return StackOutput(hidden=hidden, memory=Memory(kept), reports=tuple(reports))


def _kept(candidates: LayerMemory, keep: Tensor, counts: Tuple[int, ...], *, block: int) -> LayerMemory:
    """What is left of the candidates; keys and values only move when more would be stored than is to be (design, section 6)."""
    if candidates.spans is None:
        return candidates.kept(keep, counts)
    enough = -(-max(counts) // SLACK) * SLACK + block
    if candidates.age.size(1) <= enough and candidates.room is not None:
        return candidates
    return candidates.kept(keep, counts, room=enough - max(counts))
