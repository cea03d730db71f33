"""The stack of layers that reads text block by block and remembers, the same for every policy.

Size legend: B rows, T tokens of a block, D width, K heads, P positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq_expire.modules.borders import Borders
from fairseq_expire.modules.layer import LayerOutput, LayerReport, MemoryLayer
from fairseq_expire.modules.memory import Memory
from fairseq_expire.modules.policies.base import MemoryPolicy


class StackOutput(NamedTuple):
    """A block after all layers.

    Args:
        hidden: [B, T, D], the output states.
        memory: the memory to read on from, without gradient.
        reports: one for each layer.
    """

    hidden: Tensor
    memory: Memory
    reports: tuple[LayerReport, ...]


class MemoryTransformer(nn.Module):
    """A stack of layers that reads a stream block by block: ``hidden, memory -> hidden, memory``.

    With fixed weights, the output does not depend on how the stream is cut into blocks.

    Args:
        embed_dim: D.
        num_heads: K; divides ``embed_dim``.
        ffn_dim: width inside the feed-forward networks.
        num_layers: number of layers.
        position_range: P, how many steps back attention knows distances; layers and heads share the embeddings.
        policy: makes the memory policy of one layer; called once for each.
        pre_norm: layer norm before the sublayers (and once after the last) instead of after them.
        dropout: on the output of each sublayer.
        attention_dropout: on attention probabilities.
        activation_dropout: inside the feed-forward networks.
        checkpoint_activations: store nothing inside a layer for the backward pass, and run it again there.
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
        sizes = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "num_layers": num_layers,
            "position_range": position_range,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if embed_dim % num_heads:
            raise ValueError(
                "the heads share the width: num_heads must divide embed_dim, "
                f"got {num_heads} heads and width {embed_dim}"
            )
        shares = {
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
        }
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} is a share: expected 0 <= {name} < 1, got {share}")
        self.embed_dim = embed_dim
        self.position_range = position_range
        self.checkpoint_activations = checkpoint_activations
        head_dim = embed_dim // num_heads
        # Of the size of queries, so that a head tells one step back from two from the first update on.
        self.position = nn.Parameter(torch.randn(position_range, head_dim))
        # A ModuleList does not name the type of its modules.
        self.layers: Sequence[MemoryLayer] = nn.ModuleList(  # type: ignore[assignment]
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
    def max_age(self) -> int | None:
        """Largest age, in steps, of a state that the memory of a layer may hold; None for no limit."""
        ages = [layer.policy.max_age for layer in self.layers]
        limited = [age for age in ages if age is not None]
        return max(limited) if len(limited) == len(ages) else None

    def empty_memory(self, batch: int, *, tokens_read: int | Sequence[int] = 0) -> Memory:
        """Makes a memory of B rows that holds nothing of the tokens that came before.

        Args:
            batch: B.
            tokens_read: number of tokens that came before, or a number for each row: of its document.
        """
        memory = Memory.empty(batch=batch, num_layers=len(self.layers), embed_dim=self.embed_dim, like=self.position)
        if isinstance(tokens_read, int):
            tokens_read = (tokens_read,) * batch
        return Memory(tuple(replace(layer, tokens_read=tuple(tokens_read)) for layer in memory.layers))

    def check_memory(self, memory: Memory, *, batch: int) -> None:
        """Raises ValueError, with the likely cause, unless B rows can be read on from a memory."""
        memory.check_fits(
            batch=batch,
            num_layers=len(self.layers),
            embed_dim=self.embed_dim,
            keeps_inputs=self.layers[0].policy.keeps_inputs,
        )

    def forward(
        self,
        hidden: Tensor,
        memory: Memory | None = None,
        *,
        padding: Tensor | None = None,
        starts: Tensor | None = None,
        shortening: float | None = None,
    ) -> StackOutput:
        """Reads one block.

        Args:
            hidden: [B, T, D], embedded tokens; T may differ from block to block.
            memory: what the previous block returned; None at the start of a stream.
            padding: [B, T] bool, True where a row has no token: it is neither seen nor remembered.
            starts: [B, T] bool, True where a token begins a document or an episode: from there on, nothing before it is
                seen, stored or charged. Its own query sees nothing. None if the block has no such border.
            shortening: share of L in [0, 1) to which spans are cut in this block. With None, the policy may draw one in
                training (section 4.2).
        Raises:
            ValueError: if the block or the memory does not fit the model.
        """
        if hidden.dim() != 3 or hidden.size(1) < 1 or hidden.size(2) != self.embed_dim:
            raise ValueError(
                f"a block is [B, T, {self.embed_dim}] with at least one token a row, got {list(hidden.shape)}"
            )
        batch, block, _ = hidden.shape
        if memory is None:
            memory = Memory.empty(batch=batch, num_layers=len(self.layers), embed_dim=self.embed_dim, like=hidden)
        self.check_memory(memory, batch=batch)
        if starts is not None and (starts.shape != hidden.shape[:2] or starts.dtype != torch.bool):
            raise ValueError(
                f"starts marks the tokens that begin a document: expected bool {list(hidden.shape[:2])}, as the block, "
                f"got {starts.dtype} {list(starts.shape)}"
            )
        borders = None if starts is None else Borders(starts)
        if shortening is None and self.training:
            shortening = self.layers[0].policy.draw_shortening()

        outputs: list[LayerOutput] = []
        for layer, before in zip(self.layers, memory.layers):
            read: Callable[..., LayerOutput] = layer
            if self.checkpoint_activations and torch.is_grad_enabled():
                read = partial(checkpoint, layer, use_reentrant=False)
            out = read(hidden, before, self.position, padding=padding, borders=borders, shortening=shortening)
            hidden = out.hidden
            outputs.append(out)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return StackOutput(hidden, _pruned(outputs, block, borders), tuple(out.report for out in outputs))


def _pruned(outputs: Sequence[LayerOutput], block: int, borders: Borders | None) -> Memory:
    """Deletes the memories that no later query can see."""
    # How many memories each row of each layer keeps, and the age of the oldest.
    found = [
        torch.stack([out.keep.sum(dim=1), out.memory.age.masked_fill(~out.keep, 0).amax(dim=1)]) for out in outputs
    ]
    if borders is not None:
        found.append(borders.tokens_of_last.unsqueeze(0))
    # The only wait for the device.
    numbers = torch.cat(found).tolist()
    layers = []
    for number, out in enumerate(outputs):
        counts, oldest = numbers[2 * number : 2 * number + 2]
        memory = out.memory if borders is None else out.memory.begin_documents(numbers[-1])
        layers.append(memory.prune(out.keep, tuple(counts), oldest=max(oldest), block=block))
    return Memory(tuple(layers))
