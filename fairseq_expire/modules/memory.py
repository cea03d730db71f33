"""The memory of a stack of layers, and of each layer, as a value.

Size legend: B rows, M slots of a row, T tokens of a block, N slots that are added, D width, H heads of a span.

A memory goes into a forward pass as an argument and comes out as a new one; the one that went in stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairseq_expire.modules.borders import Borders
from fairseq_expire.modules.growable_buffer import GrowableBuffer

# Rows hold different numbers of memories in one rectangular tensor. An empty slot is a memory too old for any policy to
# show, so no code needs a case of its own for it. Far above every span, far below the limit of int64.
EMPTY_AGE = 1 << 40
# The number of slots is rounded up to a multiple of this, so that reading token by token need not copy a memory each
# time.
SLOT_MULTIPLE = 64
# The tensors stored for each slot beside its age.
FIELDS = ("inputs", "keys", "values", "spans", "min_distance")


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Memory of one layer: what it stores of each token, and the age of each.

    In ``train()`` or with gradients, it stores the layer's input for each token, since weights may change: keys, values
    and spans are computed anew for every block. In ``eval()`` without gradients (scoring, generation), it stores the
    key, the value and the span of each token, computed once; and the layer's input as well, if the policy needs it.

    Use :meth:`from_tensors` to make one of tensors alone.

    Args:
        age: [B, M] int64, steps back from the next token to be read, 1 for the youngest; ``EMPTY_AGE`` or more where a
            slot holds nothing. Slots are in order of age, but for those that a policy added (see
            :meth:`MemoryPolicy.compress`).
        inputs: [B, M, D], the inputs of the layer; None where keys and values are stored and the policy needs no
            inputs.
        keys: [B, M, D], None where inputs are stored.
        values: [B, M, D], None where inputs are stored.
        spans: [B, M, H], in steps; None where inputs are stored.
        min_distance: [B, M] int64, the distance from which on a slot is seen; None if it is 1 for all slots.
        counts: number of slots that each row uses, the last ones.
        oldest: no memory that a query can see is older than this many steps.
        tokens_read: for each row, the number of tokens that have been read of its document, or of its stream without
            borders.
        buffer: where the fields can grow; None for nowhere.
    Raises:
        ValueError: if the shapes or the type of ``age`` do not fit, or a field is missing.
    """

    age: Tensor
    inputs: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    spans: Tensor | None = None
    min_distance: Tensor | None = None
    counts: tuple[int, ...]
    oldest: int
    tokens_read: tuple[int, ...]
    buffer: GrowableBuffer | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.age.dtype != torch.int64:
            raise ValueError(f"ages are whole steps: expected an int64 tensor, got {self.age.dtype}")
        fields = self.fields
        shape = self.age.shape
        if len(self.tokens_read) != len(self.age):
            raise ValueError(
                f"tokens_read has a number for each row: expected {len(self.age)}, got {len(self.tokens_read)}"
            )
        for name, tensor in fields.items():
            if tensor.shape[:2] != shape:
                raise ValueError(
                    f"a layer's memory has one slot for each age: got age {list(shape)} and {name} {list(tensor.shape)}"
                )
        with_spans = [name for name in ("keys", "values", "spans") if name in fields]
        if len(with_spans) not in (0, 3) or not (with_spans or "inputs" in fields):
            raise ValueError(
                f"a layer's memory stores inputs, or keys, values and spans: got {', '.join(fields) or 'neither'}"
            )

    @classmethod
    def from_tensors(cls, *, age: Tensor, tokens_read: Sequence[int] | None = None, **fields: Any) -> "LayerMemory":
        """Makes a memory whose ``counts`` and ``oldest`` are found by looking at ``age``.

        Args:
            age: as in the class.
            tokens_read: as in the class; None for none.
            fields: tensors or None by name, as in the class.
        """
        occupied = age < EMPTY_AGE
        # From the oldest slot in use on.
        empty = (~occupied).to(torch.int64).cumprod(dim=1).sum(dim=1)
        return cls(
            age=age,
            **fields,
            counts=tuple((age.size(1) - empty).tolist()),
            oldest=_oldest(age, occupied),
            tokens_read=(0,) * age.size(0) if tokens_read is None else tuple(tokens_read),
        )

    @classmethod
    def empty(cls, *, batch: int, embed_dim: int, like: Tensor) -> "LayerMemory":
        """Makes a memory that holds nothing, of the type and on the device of ``like``."""
        age = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        inputs = like.new_zeros(batch, 0, embed_dim)
        return cls(age=age, inputs=inputs, counts=(0,) * batch, oldest=0, tokens_read=(0,) * batch)

    @property
    def fields(self) -> dict[str, Tensor]:
        """The tensors that are stored beside the age, by name."""
        return {name: tensor for name in FIELDS if (tensor := getattr(self, name)) is not None}

    @property
    def rows(self) -> int:
        """B."""
        return self.age.size(0)

    @property
    def slots(self) -> int:
        """M."""
        return self.age.size(1)

    @property
    def occupied(self) -> Tensor:
        """[B, M] bool: the slots that hold a memory."""
        return self.age < EMPTY_AGE

    @property
    def nbytes(self) -> int:
        """Bytes in use, empty slots and room to grow included."""
        stored = sum(tensor.nbytes for tensor in self.fields.values()) if self.buffer is None else self.buffer.nbytes
        return stored + self.age.nbytes

    def flatten(self, tensor: Tensor) -> Tensor:
        """[B, M, W] -> [sum of ``counts``, W]: the slots in use, row after row."""
        return torch.cat([row[self.slots - count :] for row, count in zip(tensor, self.counts)])

    def unflatten(self, flat: Tensor, block: Tensor) -> Tensor:
        """Undoes :meth:`flatten`, with a block behind the memory.

        Args:
            flat: [sum of ``counts``, W].
            block: [B, T, W].
        Returns:
            [B, M + T, W], zeros in the empty slots.
        """
        parts = []
        for old, new in zip(torch.split(flat, list(self.counts)), block):
            parts += [old.new_zeros(self.slots - len(old), old.size(-1)), old, new]
        return torch.cat(parts).view(self.rows, self.slots + block.size(1), block.size(-1))

    def block_age(self, block: int, padding: Tensor | None) -> Tensor:
        """[B, T] int64, the ages of a block's tokens for its first query: 0, -1, ... -(T - 1).

        Args:
            block: T.
            padding: [B, T] bool, True where the block has no token; or None.
        """
        age = -torch.arange(block, device=self.age.device).expand(self.rows, block)
        return age if padding is None else age.masked_fill(padding, EMPTY_AGE)

    def append(self, age: Tensor, **fields: Tensor) -> "LayerMemory":
        """Returns this memory followed by others.

        Args:
            age: [B, N] int64.
            fields: a tensor [B, N, ...] for each field of this memory. Without ``min_distance`` it is 1 for all.
        """
        stored = self.fields
        if "min_distance" in stored:
            fields.setdefault("min_distance", torch.ones_like(age))
        elif "min_distance" in fields:
            stored["min_distance"] = torch.ones_like(self.age)
        grown: dict[str, Any] | None = None
        if self.buffer is not None:
            grown = self.buffer.append(self.slots, fields)
        buffer = None if grown is None else self.buffer
        if grown is None:
            grown = {name: torch.cat([tensor, fields[name]], dim=1) for name, tensor in stored.items()}
        return LayerMemory(
            age=torch.cat([self.age, age], dim=1),
            **grown,
            counts=tuple(count + age.size(1) for count in self.counts),
            oldest=self.oldest,
            tokens_read=self.tokens_read,
            buffer=buffer,
        )

    def with_fields(self, fields: Mapping[str, Tensor]) -> "LayerMemory":
        """Returns the same slots with other fields; ``min_distance`` stays."""
        given: dict[str, Any] = {"min_distance": self.min_distance, **fields}
        return LayerMemory(
            age=self.age,
            **given,
            counts=self.counts,
            oldest=self.oldest,
            tokens_read=self.tokens_read,
        )

    def advance(self, steps: int) -> "LayerMemory":
        """Returns the same memories ``steps`` tokens later."""
        tokens_read = tuple(count + steps for count in self.tokens_read)
        return replace(self, age=self.age + steps, oldest=self.oldest + steps, tokens_read=tokens_read)

    def begin_documents(self, tokens_read: Sequence[int]) -> "LayerMemory":
        """Returns the same memories, where some rows began a document.

        Args:
            tokens_read: tokens that have been read of these documents; 0 for a row that is in the same one as before.
        """
        return replace(self, tokens_read=tuple(new or before for before, new in zip(self.tokens_read, tokens_read)))

    def prune(self, keep: Tensor, counts: tuple[int, ...], *, oldest: int, block: int) -> "LayerMemory":
        """Returns the memories marked, with room for another block where keys and values are stored.

        Keys and values are moved only when they would take more slots than the largest count, rounded up to
        ``SLOT_MULTIPLE``, plus one block, or when the next block would find no room. Until then a slot that is not
        marked stays in place, hidden by its age.

        Args:
            keep: [B, M] bool.
            counts: number of marked slots in each row.
            oldest: the age of the oldest of them.
            block: number of tokens that were read at once, and probably will be.
        """
        if self.keys is None:
            return self.compact(keep, counts, oldest=oldest)
        limit = -(-max(counts) // SLOT_MULTIPLE) * SLOT_MULTIPLE + block
        # A longer block before this one may have left more room than the limit.
        if self.buffer is not None and self.slots + block <= self.buffer.capacity <= limit:
            return replace(self, age=self.age.masked_fill(~keep, EMPTY_AGE), oldest=oldest)
        return self.compact(keep, counts, oldest=oldest, room=limit - max(counts))

    def compact(
        self, keep: Tensor, counts: tuple[int, ...], *, oldest: int | None = None, room: int = 0
    ) -> "LayerMemory":
        """Returns the memories marked, moved to the last slots in their order, without gradient.

        Args:
            keep: [B, M] bool.
            counts: number of marked slots in each row.
            oldest: the age of the oldest of them; looked up if not given.
            room: number of slots to leave free for what is read next.
        """
        size = max(counts)
        # A stable sort moves the marked to the end and leaves both groups in their order.
        order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, self.slots - size :]  # [B, size]
        stored = {name: _select(tensor.detach(), order, room) for name, tensor in self.fields.items()}
        fields: dict[str, Any] = {name: tensor[:, :size] for name, tensor in stored.items()}
        age = self.age.masked_fill(~keep, EMPTY_AGE).gather(1, order)
        return LayerMemory(
            age=age,
            **fields,
            counts=counts,
            oldest=_oldest(age, age < EMPTY_AGE) if oldest is None else oldest,
            tokens_read=self.tokens_read,
            buffer=GrowableBuffer(stored, size) if room else None,
        )

    def detach(self) -> "LayerMemory":
        """Returns the same memories without gradient."""
        fields: dict[str, Any] = {name: tensor.detach() for name, tensor in self.fields.items()}
        return replace(self, **fields)

    def reorder(self, rows: Tensor, numbers: Sequence[int] | None = None) -> "LayerMemory":
        """Returns the memory of the rows ``rows`` (an index may repeat), as beam search needs.

        Returns self if ``rows`` is 0 ... B - 1. The result has as much room to grow as this memory, so that reading on
        from it does not copy it again.

        Args:
            rows: [B'] int64.
            numbers: ``rows`` as Python integers, so that no device is waited for; looked up if not given.
        """
        numbers = rows.tolist() if numbers is None else numbers
        if list(numbers) == list(range(self.rows)):
            return self
        buffer = None
        fields: dict[str, Any]
        if self.buffer is None:
            fields = {name: tensor.index_select(0, rows) for name, tensor in self.fields.items()}
        else:
            # One copy with the room behind it, rather than another one when something is appended.
            copied = {name: tensor.index_select(0, rows) for name, tensor in self.buffer.tensors.items()}
            buffer = GrowableBuffer(copied, self.slots)
            fields = {name: tensor[:, : self.slots] for name, tensor in copied.items()}
        return LayerMemory(
            age=self.age.index_select(0, rows),
            **fields,
            counts=tuple(self.counts[row] for row in numbers),
            oldest=self.oldest,
            tokens_read=tuple(self.tokens_read[row] for row in numbers),
            buffer=buffer,
        )

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "LayerMemory":
        """Returns the memory on another device, or of another floating-point type; spans keep their precision."""
        precise = {"spans", "min_distance"}
        fields: dict[str, Any] = {
            name: tensor.to(device=device, dtype=None if name in precise else dtype)
            for name, tensor in self.fields.items()
        }
        return replace(self, age=self.age.to(device=device), **fields, buffer=None)

    @staticmethod
    def cat(memories: Sequence["LayerMemory"]) -> "LayerMemory":
        """Returns the rows of several memories, one below the other.

        Raises:
            ValueError: if they do not store the same fields.
        """
        kinds = {
            tuple((name, m.fields[name].size(-1)) for name in m.fields if name != "min_distance") for m in memories
        }
        if len(kinds) != 1:
            given = "; ".join(", ".join(f"{name} {list(x.shape)}" for name, x in m.fields.items()) for m in memories)
            raise ValueError(f"memories can be joined if they store the same fields, got {given}")
        slots = max(m.slots for m in memories)
        names = {name: None for m in memories for name in m.fields}
        fields: dict[str, Any] = {
            name: _stack([m.fields.get(name, torch.ones_like(m.age)) for m in memories], slots, 0) for name in names
        }
        return LayerMemory(
            age=_stack([m.age for m in memories], slots, EMPTY_AGE),
            **fields,
            counts=tuple(count for m in memories for count in m.counts),
            oldest=max(m.oldest for m in memories),
            tokens_read=tuple(count for m in memories for count in m.tokens_read),
        )


@dataclass(frozen=True)
class Memory:
    """The memories of all layers, first layer first; a value, see :class:`LayerMemory`."""

    layers: tuple[LayerMemory, ...]

    @classmethod
    def empty(cls, *, batch: int, num_layers: int, embed_dim: int, like: Tensor) -> "Memory":
        """Makes a memory that holds nothing, of the type and on the device of ``like``."""
        return cls(tuple(LayerMemory.empty(batch=batch, embed_dim=embed_dim, like=like) for _ in range(num_layers)))

    @property
    def nbytes(self) -> int:
        """Bytes in use, empty slots and room to grow included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Slots of a row in each layer, empty ones included."""
        return tuple(layer.slots for layer in self.layers)

    def skip(self, starts: Tensor) -> "Memory":
        """Returns what is left of the memories after N tokens that are not read.

        Args:
            starts: [B, N] bool, True where one of them begins a document; the row forgets what is before it.
        """
        tokens_read = Borders(starts).tokens_of_last
        goes_on, numbers = (tokens_read == 0).unsqueeze(1), tokens_read.tolist()
        layers = []
        for layer in self.advance(starts.size(1)).layers:
            keep = layer.occupied & goes_on
            layers.append(layer.begin_documents(numbers).compact(keep, tuple(keep.sum(dim=1).tolist())))
        return Memory(tuple(layers))

    def advance(self, steps: int) -> "Memory":
        """Returns the same memories ``steps`` tokens later."""
        return Memory(tuple(layer.advance(steps) for layer in self.layers))

    def detach(self) -> "Memory":
        """Returns the same memories without gradient."""
        return Memory(tuple(layer.detach() for layer in self.layers))

    def reorder(self, rows: Tensor) -> "Memory":
        """Returns the memory of the rows ``rows`` [B'] int64, see :meth:`LayerMemory.reorder`."""
        numbers = rows.tolist()
        return Memory(tuple(layer.reorder(rows, numbers) for layer in self.layers))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Memory":
        """Returns the memory on another device, or of another floating-point type; spans keep their precision."""
        return Memory(tuple(layer.to(device, dtype) for layer in self.layers))

    @classmethod
    def cat(cls, memories: Sequence["Memory"]) -> "Memory":
        """Joins the rows of several memories of one model: texts that were read apart go on side by side.

        Raises:
            ValueError: if they come from different models.
        """
        if len({len(memory.layers) for memory in memories}) != 1:
            raise ValueError(
                f"memories can be joined if they have the same layers, got {[len(m.layers) for m in memories]}"
            )
        return cls(tuple(LayerMemory.cat(layers) for layers in zip(*(memory.layers for memory in memories))))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns plain tensors by name, such as ``0.age`` and ``0.inputs``, for :meth:`from_state_dict`."""
        state = {}
        for number, layer in enumerate(self.layers):
            state[f"{number}.age"] = layer.age
            state[f"{number}.tokens_read"] = torch.tensor(layer.tokens_read, dtype=torch.int64)
            for name, tensor in layer.fields.items():
                # Without the room to grow.
                state[f"{number}.{name}"] = tensor.clone()
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "Memory":
        """Makes a memory of what :meth:`state_dict` returned, also in version 0.1: one number of tokens for all rows.

        Raises:
            ValueError: if ``state`` is something else, or was written by an earlier version.
        """
        count = sum(name.endswith(".age") for name in state)
        if any(name.endswith(".states") for name in state):
            raise ValueError(
                "this memory was written by an earlier version of fairseq_expire, which stored it in another form: "
                "start without it, or use that version"
            )
        required = {f"{number}.{name}" for number in range(count) for name in ("age", "tokens_read")}
        allowed = required | {f"{number}.{name}" for number in range(count) for name in FIELDS}
        if not count or not required <= set(state) <= allowed:
            raise ValueError(
                f"not the state of a memory: expected names such as '0.age' and '0.inputs', got {sorted(state)}"
            )
        return cls(
            tuple(
                LayerMemory.from_tensors(
                    age=state[f"{number}.age"],
                    tokens_read=state[f"{number}.tokens_read"].expand(len(state[f"{number}.age"])).tolist(),
                    **{name: state.get(f"{number}.{name}") for name in FIELDS},
                )
                for number in range(count)
            )
        )

    def check_fits(self, *, batch: int, num_layers: int, embed_dim: int, keeps_inputs: bool) -> None:
        """Checks that a model of this shape can read on from here.

        Args:
            batch: B.
            num_layers: number of layers of the model.
            embed_dim: D.
            keeps_inputs: True if inputs belong beside keys and values, see :class:`MemoryPolicy`.
        Raises:
            ValueError: if not, with the likely cause.
        """
        if len(self.layers) != num_layers:
            raise ValueError(
                f"the memory has {len(self.layers)} layers, the model {num_layers}: it comes from another model"
            )
        for number, layer in enumerate(self.layers):
            if layer.rows != batch:
                raise ValueError(
                    f"the memory of layer {number} has {layer.rows} rows, the block {batch}: "
                    "each row of a batch needs its own memory; start from none, or use Memory.reorder"
                )
            for name in ("inputs", "keys", "values"):
                tensor = layer.fields.get(name)
                if tensor is not None and tensor.size(-1) != embed_dim:
                    raise ValueError(
                        f"the memory of layer {number} has {name} of width {tensor.size(-1)}, the model needs "
                        f"{embed_dim}: it comes from another model"
                    )
            if layer.keys is not None and (layer.inputs is not None) != keeps_inputs:
                raise ValueError(
                    f"the memory of layer {number} stores {', '.join(layer.fields)}, and the model needs keys and "
                    f"values {'with' if keeps_inputs else 'without'} inputs: it comes from another model"
                )


def _oldest(age: Tensor, occupied: Tensor) -> int:
    return int(age.masked_fill(~occupied, 0).max().item()) if age.numel() else 0


def _select(tensor: Tensor, order: Tensor, room: int) -> Tensor:
    """[B, M, ...] -> [B, N + room, ...]: the slots ``order`` [B, N], and free ones behind them."""
    rows, size = order.shape
    out = tensor.new_empty(rows, size + room, *tensor.shape[2:])
    if tensor.device.type == "cpu":
        # Whole slots at once, which indexing by rows and slots does not copy on a CPU.
        for row, slots, into in zip(tensor, order, out):
            torch.index_select(row, 0, slots, out=into[:size])
    else:
        out[:, :size] = tensor[torch.arange(rows, device=order.device).unsqueeze(1), order]
    return out


def _stack(parts: Sequence[Tensor], slots: int, empty: int) -> Tensor:
    """[B', M', ...] each -> [sum of B', slots, ...]: each in the last slots, and ``empty`` before them."""
    rows = sum(len(part) for part in parts)
    whole = parts[0].new_full((rows, slots, *parts[0].shape[2:]), empty)
    first = 0
    for part in parts:
        whole[first : first + len(part), slots - part.size(1) :] = part
        first += len(part)
    return whole
