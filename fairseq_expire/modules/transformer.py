"""A layer and a stack of layers that read text block by block and remember, the same for every policy.

Size legend: B rows, T tokens of a block, M memories, S = M + T, D width, K heads, P reach of positions.
"""

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .memory import LayerMemory, Memory
from .policy import MemoryPolicy, View


@dataclass(frozen=True)
class LayerReport:
    """What happened in one layer while a block was read.

    Args:
        memory_size: [B, T] int64, |C_t|: how many states each query saw.
        span: [B, T], how long the block's own states will stay, in steps, before any random shortening.
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
    ) -> Tuple[Tensor, LayerMemory, View]:
        """
        Args:
            hidden: [B, T, D], the block.
            memory: what the layer remembers, [B, M, D].
            position: [P, D / K] embeddings of the distances 1..P.
            padding, shortening: as in :meth:`MemoryTransformer.forward`.
        Returns:
            the block's output [B, T, D]; memory and block as one [B, S, D]; what the policy showed.
        """
        block = hidden.size(1)
        candidates = memory.extended(hidden, padding)
        states = self.attention_norm(candidates.hidden) if self.pre_norm else candidates.hidden  # [B, S, D]
        steps = torch.arange(block, device=hidden.device).view(1, block, 1)
        distance = candidates.age.unsqueeze(1) + steps  # [B, T, S]
        view = self.policy.view(states, distance, padding=padding, shortening=shortening)

        attended = attend(
            self._heads(self.query_proj(states[:, -block:])),
            self._heads(self.key_proj(states)),
            self._heads(self.value_proj(states)),
            bias=view.bias,
            distance=distance,
            position=position,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        attended = self.dropout(self.out_proj(attended.transpose(1, 2).flatten(2)))  # [B, K, T, d] -> [B, T, D]

        if self.pre_norm:
            middle = hidden + attended
            return middle + self._feed_forward(self.ffn_norm(middle)), candidates, view
        middle = self.attention_norm(hidden + attended)
        return self.ffn_norm(middle + self._feed_forward(middle)), candidates, view

    def _heads(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, K, N, D / K]."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.activation_dropout(F.relu(self.fc1(states)))))


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
            hidden, extended, view = layer(hidden, held, self.position, padding=padding, shortening=shortening)
            candidates.append(layer.policy.retain(extended.detach().aged(block), view))
            reports.append(
                LayerReport(
                    memory_size=view.visible.sum(dim=-1), span=view.span[:, -block:].detach(), penalty=view.penalty
                )
            )
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)

        # The one point where the device is waited for: how many memories the longest row of each layer keeps.
        sizes = torch.stack([keep.sum(dim=1).max() for _, keep in candidates]).tolist()
        kept = tuple(extended.kept(keep, size) for (extended, keep), size in zip(candidates, sizes))
        return StackOutput(hidden=hidden, memory=Memory(kept), reports=tuple(reports))
