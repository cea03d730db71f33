"""The memory of a stack of layers as a value.

A memory goes into a forward pass as an argument and comes out as a new one; what was passed in stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_expire.modules.layer_memory import OPTIONAL, LayerMemory
from fairseq_expire.modules.rows import joined


@dataclass(frozen=True)
class Memory:
    """The memories of all layers, first layer first. A value: see :class:`LayerMemory`."""

    layers: tuple[LayerMemory, ...]

    @classmethod
    def empty(cls, *, batch: int, num_layers: int, embed_dim: int, like: Tensor) -> "Memory":
        return cls(tuple(LayerMemory.empty(batch, embed_dim, like) for _ in range(num_layers)))

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Slots per row of each layer: the number of memories of its longest row."""
        return tuple(layer.age.size(1) for layer in self.layers)

    def advance(self, steps: int) -> "Memory":
        return Memory(tuple(layer.advance(steps) for layer in self.layers))

    def detach(self) -> "Memory":
        return Memory(tuple(layer.detach() for layer in self.layers))

    @classmethod
    def cat(cls, memories: Sequence["Memory"]) -> "Memory":
        """The rows of several memories of one model in one, as texts that were read by themselves go on side by side.

        Raises:
            ValueError: if they have not read equally many tokens, or come from different models.
        """
        if len({len(memory.layers) for memory in memories}) != 1:
            raise ValueError(
                f"memories can be joined if they have the same layers, got {[len(m.layers) for m in memories]}"
            )
        return cls(tuple(joined(layers) for layers in zip(*(memory.layers for memory in memories))))

    def reorder(self, rows: Tensor) -> "Memory":
        """Rows picked, and repeated, by index [B'] int64; this memory itself if they are its own in order."""
        numbers = rows.tolist()
        return Memory(tuple(layer.reorder(rows, numbers) for layer in self.layers))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Memory":
        return Memory(tuple(layer.to(device, dtype) for layer in self.layers))

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors by name, for ``torch.save``; :meth:`from_state_dict` reads them back."""
        state = {}
        for number, layer in enumerate(self.layers):
            # Without the room to grow in.
            state[f"{number}.states"] = layer.states.clone()
            state[f"{number}.age"] = layer.age
            state[f"{number}.read"] = torch.tensor(layer.read)
            for part in OPTIONAL:
                if getattr(layer, part) is not None:
                    state[f"{number}.{part}"] = getattr(layer, part)
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "Memory":
        """Raises ValueError if ``state`` isn't what :meth:`state_dict` gives."""
        count = sum(name.endswith(".states") for name in state)
        required = {f"{number}.{part}" for number in range(count) for part in ("states", "age", "read")}
        allowed = required | {f"{number}.{part}" for number in range(count) for part in OPTIONAL}
        if not count or not required <= set(state) <= allowed:
            raise ValueError(
                f"not the state of a memory: expected keys like '0.states' and '0.age', got {sorted(state)}"
            )
        return cls(
            tuple(
                LayerMemory(
                    state[f"{n}.states"],
                    state[f"{n}.age"],
                    *(state.get(f"{n}.{part}") for part in OPTIONAL),
                    read=int(state[f"{n}.read"]),
                )
                for n in range(count)
            )
        )

    def check_fits(self, *, batch: int, num_layers: int, embed_dim: int, parts: int = 2) -> None:
        """Raises ValueError, with the likely cause, unless a model of this shape can read on from here.

        Args:
            parts: how many widths are stored of what is read while weights stand still: 2, or 3 with the layer's input.
        """
        if len(self.layers) != num_layers:
            raise ValueError(
                f"the memory has {len(self.layers)} layers, the model {num_layers}: it comes from another model"
            )
        for number, layer in enumerate(self.layers):
            rows, _, width = layer.states.shape
            if rows != batch:
                raise ValueError(
                    f"the memory of layer {number} has {rows} rows, the block {batch}: "
                    "each row of a batch needs its own memory; start from none, or use Memory.reorder"
                )
            expected = embed_dim if layer.spans is None else parts * embed_dim
            if width != expected:
                raise ValueError(
                    f"the memory of layer {number} has width {width}, the model needs {expected}: it comes from another model"
                )
