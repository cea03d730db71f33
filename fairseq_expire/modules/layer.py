"""A layer that reads text block by block and remembers, the same for every policy.

Size legend: B rows, T tokens of a block, M memories, S = M + T, D width, K heads, H heads of a span, P positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules.attention import attend
from fairseq_expire.modules.borders import Borders
from fairseq_expire.modules.linear import Linear
from fairseq_expire.modules.memory import LayerMemory
from fairseq_expire.modules.policies.base import MemoryPolicy
from fairseq_expire.modules.visibility import Visibility


@dataclass(frozen=True)
class LayerReport:
    """Statistics of a layer for one block.

    Args:
        span: [B, T, H], the spans of the block's own states in steps, before any random shortening.
        penalty: [B], the policy's penalty summed over the block, before its weight; or None.
        cut_by_budget: [B] int64, how many memories a budget hid before their ramp began, and so before they got a
            gradient or a price; None without a budget.
        visibility: of memories and block to the block's queries.
    """

    span: Tensor
    penalty: Tensor | None
    cut_by_budget: Tensor | None
    visibility: Visibility

    @cached_property
    def memory_size(self) -> Tensor:
        """[B, T] int64, |C_t|: how many states each query saw.

        Counted when first asked for: the criterion asks in every step, generation never.
        """
        return self.visibility.sizes()


class LayerOutput(NamedTuple):
    """A block after one layer.

    Args:
        hidden: [B, T, D], the output.
        memory: memory and block as one, [B, S], with ages as the next block's first query sees them.
        keep: [B, S] bool, True for those of them that later queries can still see.
        report: statistics of the block.
    """

    hidden: Tensor
    memory: LayerMemory
    keep: Tensor
    report: LayerReport


class _Candidates(NamedTuple):
    """Keys and values [B, S, D] and spans [B, S, H] of memory and block, and the memory that holds both."""

    key: Tensor
    value: Tensor
    spans: Tensor
    memory: LayerMemory


class MemoryLayer(nn.Module):
    """Attention over memory and block, then a feed-forward network; post-norm or pre-norm.

    Its arguments are those of :class:`MemoryTransformer`, which checks them.
    """

    policy: MemoryPolicy

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
        borders: Borders | None,
        shortening: float | None,
    ) -> LayerOutput:
        """Reads one block.

        Args:
            hidden: [B, T, D], the block.
            memory: what the layer remembers.
            position: [P, D / K], embeddings of the distances 1 ... P.
            padding, shortening: as in :meth:`MemoryTransformer.forward`.
            borders: between documents, or None.
        """
        block = hidden.size(1)
        states = self._states(hidden)
        if self.training or torch.is_grad_enabled():
            candidates = self._from_inputs(hidden, states, memory, padding, borders)
        else:
            candidates = self._from_keys(hidden, states, memory, padding, borders)
        next_start = None if borders is None else borders.next_start(candidates.memory.age)
        visibility = self.policy.visibility(
            candidates.spans, candidates.memory, block=block, shortening=shortening, next_start=next_start
        )
        attended = attend(
            self._heads(self.query_proj(states)),
            self._heads(candidates.key),
            self._heads(candidates.value),
            visibility=visibility,
            # No distance in this block is longer.
            position=position[: memory.oldest + block],
            counts=[count - block for count in candidates.memory.counts],
            dropout=self.attention_dropout if self.training else 0.0,
        )
        seen = visibility
        if shortening is not None:
            # Shortened spans delete nothing.
            visibility = self.policy.visibility(
                candidates.spans.detach(), candidates.memory, block=block, next_start=next_start
            )
        report = LayerReport(
            span=candidates.spans[:, -block:].detach(),
            penalty=self.policy.penalty(seen, padding=padding),
            cut_by_budget=self.policy.cut_by_budget(visibility, next_start=next_start),
            visibility=seen.detach(),
        )
        keep = self.policy.retain(visibility)
        if visibility.hidden_from is not None:
            # This bound is not stored, so that no policy may keep what it hides.
            keep = keep & (visibility.hidden_from > block)

        attended = self.dropout(self.out_proj(attended.transpose(1, 2).flatten(2)))  # [B, K, T, D / K] -> [B, T, D]
        if self.pre_norm:
            hidden = hidden + attended
            hidden = hidden + self._feed_forward(self.ffn_norm(hidden))
        else:
            hidden = self.attention_norm(hidden + attended)
            hidden = self.ffn_norm(hidden + self._feed_forward(hidden))
        return LayerOutput(hidden, candidates.memory.advance(block), keep, report)

    def _from_inputs(
        self, hidden: Tensor, states: Tensor, memory: LayerMemory, padding: Tensor | None, borders: Borders | None
    ) -> _Candidates:
        """In ``train()`` or with gradients: computes keys, values and spans of the memory with the current weights."""
        if memory.inputs is None or memory.keys is not None:
            raise ValueError(
                "this memory was made while scoring and holds keys and values of fixed weights; training needs the "
                "layers' inputs: start from None, or from a memory made in training mode"
            )
        # A state that overflowed (fp16) is not remembered: the update is skipped, and all blocks to come would overflow
        # too.
        overflowed = ~hidden.detach().isfinite().all(dim=-1)
        padding = overflowed if padding is None else padding | overflowed
        memory = self._compress(memory, hidden.detach(), padding, borders, lambda inputs: {"inputs": inputs})
        assert memory.inputs is not None
        # Empty slots are left out. The memory has no gradient, so that only weights get one.
        remembered = self._states(memory.flatten(memory.inputs))
        key, value, spans = (
            memory.unflatten(module(remembered), module(states))
            for module in (self.key_proj, self.value_proj, self.policy)
        )
        memory = memory.append(memory.block_age(hidden.size(1), padding), inputs=hidden.detach())
        return _Candidates(key, value, spans, memory)

    def _from_keys(
        self, hidden: Tensor, states: Tensor, memory: LayerMemory, padding: Tensor | None, borders: Borders | None
    ) -> _Candidates:
        """In ``eval()`` without gradients: computes keys, values and spans once, when a token is read."""
        if memory.keys is None:
            memory = self._with_keys(memory)
        new = self._stored(hidden, states)
        assert memory.keys is not None
        if memory.keys.dtype != new["keys"].dtype:
            # Autocast begins or ends here.
            memory = memory.to(dtype=new["keys"].dtype)
        memory = self._compress(
            memory, hidden, padding, borders, lambda inputs: self._stored(inputs, self._states(inputs))
        )
        memory = memory.append(memory.block_age(hidden.size(1), padding), **new)
        assert memory.keys is not None
        assert memory.values is not None
        assert memory.spans is not None
        return _Candidates(memory.keys, memory.values, memory.spans, memory)

    def _with_keys(self, memory: LayerMemory) -> LayerMemory:
        """Turns a memory of inputs, which training left or which is empty, into one of keys, values and spans."""
        assert memory.inputs is not None
        inputs = memory.flatten(memory.inputs)
        stored = self._stored(inputs, self._states(inputs))
        fields = {
            name: memory.unflatten(flat, flat.new_empty(memory.rows, 0, flat.size(-1))) for name, flat in stored.items()
        }
        return memory.with_fields(fields)

    def _stored(self, inputs: Tensor, states: Tensor) -> dict[str, Tensor]:
        """Computes the fields that are stored in ``eval()`` without gradients, by the names of :class:`LayerMemory`.

        Args:
            inputs: [..., D], the layer's inputs.
            states: [..., D], the inputs after the layer norm of a pre-norm layer, else the inputs.
        """
        keys = self.key_proj(states)
        stored = {"keys": keys, "values": self.value_proj(states), "spans": self.policy(states)}
        if self.policy.keeps_inputs:
            stored["inputs"] = inputs.to(keys.dtype)
        return stored

    def _compress(
        self,
        memory: LayerMemory,
        inputs: Tensor,
        padding: Tensor | None,
        borders: Borders | None,
        stored: Callable[[Tensor], dict[str, Tensor]],
    ) -> LayerMemory:
        """Appends the memories that the policy makes of several states each.

        Args:
            memory: before the block.
            inputs: [B, T, D] of the block.
            padding: [B, T] bool, or None.
            borders: between documents, or None.
            stored: computes the fields of the memory from layer inputs [B, G, D].
        """
        new = self.policy.compress(memory, inputs, padding, borders)
        if new is None or (not new.age.size(1) and memory.min_distance is not None):
            return memory
        return memory.append(new.age, **stored(new.inputs), min_distance=new.min_distance)

    def _states(self, inputs: Tensor) -> Tensor:
        """Returns the inputs [..., D] after the layer norm of a pre-norm layer, else the inputs."""
        return self.attention_norm(inputs) if self.pre_norm else inputs

    def _heads(self, states: Tensor) -> Tensor:
        """Splits states into heads: [B, N, D] -> [B, K, N, D / K]."""
        return states.view(*states.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def _feed_forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.fc2(self.activation_dropout(F.relu(self.fc1(states)))))
        return out
