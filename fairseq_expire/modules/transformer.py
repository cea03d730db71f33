"""A stack of layers that reads text block by block and remembers, the same for every policy.

Size legend: B rows, T tokens of a block, D width, K heads, P reach of positions.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_expire.modules.layer import LayerReport, MemoryLayer
from fairseq_expire.modules.layer_memory import EMPTY_AGE, SLACK, LayerMemory
from fairseq_expire.modules.memory import Memory
from fairseq_expire.modules.policies.base import MemoryPolicy


class StackOutput(NamedTuple):
    """A block read: its output states [B, T, D], the memory to read on from, and a report for each layer."""

    hidden: Tensor
    memory: Memory
    reports: tuple[LayerReport, ...]


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

    @property
    def reach(self) -> int | None:
        """How many steps back a layer's memory may go; None for no limit."""
        reaches = [layer.policy.reach for layer in self.layers]
        return None if None in reaches else max(reaches)

    def empty_memory(self, batch: int, *, read: int = 0) -> Memory:
        """A memory of B rows that holds nothing of the ``read`` tokens that came before."""
        shape = dict(batch=batch, num_layers=len(self.layers), embed_dim=self.embed_dim)
        return Memory.empty(**shape, like=self.position).advance(read)

    def forward(
        self,
        hidden: Tensor,
        memory: Memory | None = None,
        *,
        padding: Tensor | None = None,
        shortening: float | None = None,
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
        memory.check_fits(**shape, parts=3 if self.layers[0].policy.compresses else 2)
        if shortening is None and self.training:
            shortening = self.layers[0].policy.draw_shortening()

        candidates: list[tuple[LayerMemory, Tensor]] = []
        reports: list[LayerReport] = []
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

        # The one point where the device is waited for: how many memories each row of each layer keeps, and the oldest.
        found = [torch.stack([keep.sum(dim=1), old.age.masked_fill(~keep, 0).amax(dim=1)]) for old, keep in candidates]
        kept = tuple(
            _kept(*layer, tuple(counts), oldest=max(oldest), block=block)
            for layer, (counts, oldest) in zip(candidates, torch.stack(found).tolist())
        )
        return StackOutput(hidden=hidden, memory=Memory(kept), reports=tuple(reports))


def _kept(candidates: LayerMemory, keep: Tensor, counts: tuple[int, ...], *, oldest: int, block: int) -> LayerMemory:
    """What is left of the candidates. Keys and values move when more would be stored than is to be (design, section 6), or when the
    next block would find no room."""
    if candidates.spans is None:
        return candidates.compact(keep, counts, oldest=oldest)
    enough = -(-max(counts) // SLACK) * SLACK + block
    room = candidates.room
    # Until then what is gone stays where it is, out of sight. A longer block before this one left more room than is to be.
    if room is not None and candidates.age.size(1) + block <= room.data.size(1) <= enough:
        return replace(candidates, age=candidates.age.masked_fill(~keep, EMPTY_AGE), oldest=oldest)
    return candidates.compact(keep, counts, oldest=oldest, room=enough - max(counts))
