"""The memory of a layer, and of a stack of layers, as values.

Size legend: B rows, M memories held, D width.

A memory goes into a forward pass as an argument and comes out as a new one; nothing here is changed in place.
"""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

# Rows hold different numbers of memories in one rectangular tensor. A slot that holds none is a memory too old for
# any policy to show, so no code needs a case of its own for it. Far above every span, far below int64's limit.
EMPTY_AGE = 1 << 40


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers: the inputs it was given, and how long ago.

    Args:
        hidden: [B, M, D], the layer's inputs for the remembered tokens, oldest first.
        age: [B, M] int64, steps back from the next token to be read (the youngest possible is 1);
            ``EMPTY_AGE`` or more where a slot holds nothing.
    Raises:
        ValueError: if the shapes or the type of ``age`` do not fit.
    """

    hidden: Tensor
    age: Tensor

    def __post_init__(self):
        if self.hidden.dim() != 3 or self.age.shape != self.hidden.shape[:2]:
            raise ValueError(
                f"a layer's memory needs hidden [B, M, D] and age [B, M], got hidden {list(self.hidden.shape)} and "
                f"age {list(self.age.shape)}"
            )
        if self.age.dtype != torch.int64:
            raise ValueError(f"ages are whole steps: expected an int64 tensor, got {self.age.dtype}")

    @classmethod
    def empty(cls, batch: int, embed_dim: int, like: Tensor) -> "LayerMemory":
        """A memory that holds nothing, of the type and on the device of ``like``."""
        return cls(like.new_zeros(batch, 0, embed_dim), torch.zeros(batch, 0, dtype=torch.int64, device=like.device))

    @property
    def occupied(self) -> Tensor:
        """[B, M] bool: the slots that hold a memory."""
        return self.age < EMPTY_AGE

    @property
    def nbytes(self) -> int:
        """Bytes held, empty slots included."""
        return sum(t.numel() * t.element_size() for t in (self.hidden, self.age))

    def extended(self, hidden: Tensor, padding: Optional[Tensor]) -> "LayerMemory":
        """This memory followed by a block's own inputs, aged as the block's first token sees them.

        Args:
            hidden: [B, T, D] inputs of the block.
            padding: [B, T] bool, True where the block has no token, or None.
        Returns:
            [B, M + T, D] with ages 0, -1, ... -(T - 1) for the block: token j is -j steps back from its first.
        """
        batch, block = hidden.shape[:2]
        age = -torch.arange(block, device=hidden.device).expand(batch, block)
        if padding is not None:
            age = age.masked_fill(padding, EMPTY_AGE)
        return LayerMemory(torch.cat([self.hidden, hidden], dim=1), torch.cat([self.age, age], dim=1))

    def aged(self, steps: int) -> "LayerMemory":
        """The same memories, ``steps`` tokens later."""
        return LayerMemory(self.hidden, self.age + steps)

    def kept(self, keep: Tensor, size: int) -> "LayerMemory":
        """Only the memories marked, packed to the right in their order, without gradient.

        Args:
            keep: [B, M] bool.
            size: slots of the result; at least the largest number marked in a row.
        """
        slots = keep.size(1)
        # A stable sort moves the marked to the end and leaves both groups in time order.
        order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, slots - size :]  # [B, size]
        age = self.age.masked_fill(~keep, EMPTY_AGE).gather(1, order)
        index = order.unsqueeze(-1).expand(-1, -1, self.hidden.size(-1))  # [B, size, D]
        return LayerMemory(self.hidden.detach().gather(1, index), age)

    def detach(self) -> "LayerMemory":
        return LayerMemory(self.hidden.detach(), self.age)

    def reorder(self, rows: Tensor) -> "LayerMemory":
        """Rows picked (and repeated) by index, as beam search does. ``rows``: [B'] int64."""
        return LayerMemory(self.hidden.index_select(0, rows), self.age.index_select(0, rows))

    def to(self, device: Optional[torch.device] = None, dtype: Optional[torch.dtype] = None) -> "LayerMemory":
        """On another device, or with the hidden states in another floating-point type."""
        return LayerMemory(self.hidden.to(device=device, dtype=dtype), self.age.to(device=device))


@dataclass(frozen=True)
class Memory:
    """The memories of all layers, first layer first. A value: see :class:`LayerMemory`."""

    layers: Tuple[LayerMemory, ...]

    @classmethod
    def empty(cls, *, batch: int, num_layers: int, embed_dim: int, like: Tensor) -> "Memory":
        return cls(tuple(LayerMemory.empty(batch, embed_dim, like) for _ in range(num_layers)))

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def sizes(self) -> Tuple[int, ...]:
        """Slots per row of each layer: the number of memories of its longest row."""
        return tuple(layer.age.size(1) for layer in self.layers)

    def aged(self, steps: int) -> "Memory":
        return Memory(tuple(layer.aged(steps) for layer in self.layers))

    def detach(self) -> "Memory":
        return Memory(tuple(layer.detach() for layer in self.layers))

    def reorder(self, rows: Tensor) -> "Memory":
        return Memory(tuple(layer.reorder(rows) for layer in self.layers))

    def to(self, device: Optional[torch.device] = None, dtype: Optional[torch.dtype] = None) -> "Memory":
        return Memory(tuple(layer.to(device, dtype) for layer in self.layers))

    def state_dict(self) -> Dict[str, Tensor]:
        """Plain tensors by name, for ``torch.save``; :meth:`from_state_dict` reads them back."""
        state = {}
        for number, layer in enumerate(self.layers):
            state[f"{number}.hidden"] = layer.hidden
            state[f"{number}.age"] = layer.age
        return state

    @classmethod
    def from_state_dict(cls, state: Dict[str, Tensor]) -> "Memory":
        """Raises ValueError if ``state`` isn't what :meth:`state_dict` gives."""
        count = len(state) // 2
        expected = {f"{number}.{part}" for number in range(count) for part in ("hidden", "age")}
        if set(state) != expected:
            raise ValueError(f"not the state of a memory: expected keys like '0.hidden' and '0.age', got {sorted(state)}")
        return cls(tuple(LayerMemory(state[f"{n}.hidden"], state[f"{n}.age"]) for n in range(count)))

    def check_fits(self, *, batch: int, num_layers: int, embed_dim: int) -> None:
        """Raises ValueError, with the likely cause, unless a model of this shape can read on from here."""
        if len(self.layers) != num_layers:
            raise ValueError(
                f"the memory has {len(self.layers)} layers, the model {num_layers}: it comes from another model"
            )
        for number, layer in enumerate(self.layers):
            rows, _, width = layer.hidden.shape
            if rows != batch:
                raise ValueError(
                    f"the memory of layer {number} has {rows} rows, the block {batch}: "
                    "each row of a batch needs its own memory; start from none, or use Memory.reorder"
                )
            if width != embed_dim:
                raise ValueError(
                    f"the memory of layer {number} has width {width}, the model {embed_dim}: it comes from another model"
                )
