"""The memory of a layer as a value.

Size legend: B rows, M memories held, D width, W width of what is stored (D or 2 D), H heads of a span.

A memory goes into a forward pass as an argument and comes out as a new one; what was passed in stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fairseq_expire.modules.growable_buffer import GrowableBuffer

# Rows hold different numbers of memories in one rectangular tensor. A slot that holds none is a memory too old for
# any policy to show, so no code needs a case of its own for it. Far above every span, far below int64's limit.
EMPTY_AGE = 1 << 40
# A memory may take as many slots as it holds rounded up to this, so that reading token by token need not copy it each time.
SLACK = 64
# What only some memories have.
OPTIONAL = ("spans", "compressed")


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers of the tokens it keeps, and how long ago they were read.

    While weights change, that is the layer's input for each token, from which keys, values and spans are computed anew for
    every block. While they stand still (scoring, generation), it is the key and the value, with the span (and the input
    as well, if old states are to be summed up).

    Args:
        states: [B, M, W], oldest first, but compressed ones where they were made: the layer's inputs (W = D), or keys and
            values side by side (W = 2 D, with the inputs 3 D).
        age: [B, M] int64, steps back from the next token to be read (the youngest possible is 1);
            ``EMPTY_AGE`` or more where a slot holds nothing.
        spans: [B, M, H] in steps, of keys and values; None for the layer's inputs.
        compressed: [B, M] bool, which slots stand for several states (their age is that of the oldest); None if none does.
        held: how many of the slots of each row are in use, the youngest; found by looking at ``age`` if not given.
        oldest: no memory that a query will see is older than this; found by looking at ``age`` if not given.
        read: how many tokens of the stream came before.
        room: where ``states`` can grow.
    Raises:
        ValueError: if the shapes or the type of ``age`` do not fit.
    """

    states: Tensor
    age: Tensor
    spans: Tensor | None = None
    compressed: Tensor | None = None
    held: tuple[int, ...] | None = None
    oldest: int | None = None
    read: int = 0
    room: GrowableBuffer | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.states.dim() != 3 or self.age.shape != self.states.shape[:2]:
            raise ValueError(
                f"a layer's memory needs states [B, M, W] and age [B, M], got states {list(self.states.shape)} and "
                f"age {list(self.age.shape)}"
            )
        if self.age.dtype != torch.int64:
            raise ValueError(f"ages are whole steps: expected an int64 tensor, got {self.age.dtype}")
        if self.spans is not None and self.spans.shape[:2] != self.age.shape:
            raise ValueError(
                f"keys and values need a span each, [B, M, H]: got age {list(self.age.shape)} and "
                f"spans {list(self.spans.shape)}"
            )
        if self.compressed is not None and self.compressed.shape != self.age.shape:
            raise ValueError(
                f"a slot holds a compressed memory or does not: got age {list(self.age.shape)} and "
                f"compressed {list(self.compressed.shape)}"
            )
        if self.held is None:
            # From the oldest in use on.
            empty = (~self.occupied).to(torch.int64).cumprod(dim=1).sum(dim=1)
            object.__setattr__(self, "held", tuple((self.age.size(1) - empty).tolist()))
        if self.oldest is None:
            oldest = self.age.masked_fill(~self.occupied, 0).max().item() if self.age.numel() else 0
            object.__setattr__(self, "oldest", oldest)

    @classmethod
    def empty(cls, batch: int, width: int, like: Tensor) -> "LayerMemory":
        """A memory that holds nothing, of the type and on the device of ``like``."""
        age = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        return cls(like.new_zeros(batch, 0, width), age, held=(0,) * batch, oldest=0)

    @property
    def occupied(self) -> Tensor:
        """[B, M] bool: the slots that hold a memory."""
        return self.age < EMPTY_AGE

    @property
    def nbytes(self) -> int:
        """Bytes held, empty slots and room to grow included."""
        states = self.states if self.room is None else self.room.data
        tensors = (states, self.age, self.spans, self.compressed)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def flatten(self) -> Tensor:
        """[sum of ``held``, W]: what the rows hold, row after row, without empty slots in front."""
        slots = self.states.size(1)
        return torch.cat([row[slots - count :] for row, count in zip(self.states, self.held)])

    def extended(self, states: Tensor, spans: Tensor | None, padding: Tensor | None) -> "LayerMemory":
        """This memory followed by a block's own states, aged as the block's first token sees them.

        Args:
            states: [B, T, W] of the block.
            spans: [B, T, H] where they are keys and values.
            padding: [B, T] bool, True where the block has no token, or None.
        Returns:
            [B, M + T, W] with the ages of :meth:`age_with`.
        """
        block = states.size(1)
        return self._appended(
            states,
            age=self._age_of(block, padding),
            spans=spans,
            compressed=None if self.compressed is None else self.compressed.new_zeros(len(states), block),
        )

    def with_compressed(self, states: Tensor, age: Tensor, spans: Tensor | None) -> "LayerMemory":
        """This memory followed by compressed ones.

        Args:
            states: [B, G, W].
            age: [B, G] int64; ``EMPTY_AGE`` or more where there is none.
            spans: [B, G, H] where they are keys and values.
        """
        marked = replace(self, compressed=self.compressed_slots())
        return marked._appended(states, age=age, spans=spans, compressed=torch.ones_like(age, dtype=torch.bool))

    def _appended(
        self, states: Tensor, *, age: Tensor, spans: Tensor | None, compressed: Tensor | None
    ) -> "LayerMemory":
        grown = None if self.room is None else self.room.append(self.age.size(1), states)
        return LayerMemory(
            states=torch.cat([self.states, states], dim=1) if grown is None else grown,
            age=torch.cat([self.age, age], dim=1),
            spans=None if self.spans is None or spans is None else torch.cat([self.spans, spans], dim=1),
            compressed=None if compressed is None else torch.cat([self.compressed, compressed], dim=1),
            held=tuple(count + states.size(1) for count in self.held),
            oldest=self.oldest,
            read=self.read,
            room=None if grown is None else self.room,
        )

    def age_with(self, block: int, padding: Tensor | None) -> Tensor:
        """[B, M + T], the ages with those of a block behind them: 0, -1, ... -(T - 1), as its first token sees them.

        Args:
            block: T.
            padding: [B, T] bool, True where the block has no token, or None.
        """
        return torch.cat([self.age, self._age_of(block, padding)], dim=1)

    def _age_of(self, block: int, padding: Tensor | None) -> Tensor:
        """[B, T], of a block."""
        age = -torch.arange(block, device=self.age.device).expand(len(self.age), block)
        return age if padding is None else age.masked_fill(padding, EMPTY_AGE)

    def compressed_slots(self, block: int = 0) -> Tensor:
        """[B, M + T] bool, which slots are compressed memories, with those of a block behind them (which aren't)."""
        own = torch.zeros(len(self.age), block, dtype=torch.bool, device=self.age.device)
        held = torch.zeros_like(self.age, dtype=torch.bool) if self.compressed is None else self.compressed
        return torch.cat([held, own], dim=1)

    def advance(self, steps: int) -> "LayerMemory":
        """The same memories, ``steps`` tokens later."""
        return replace(self, age=self.age + steps, oldest=self.oldest + steps, read=self.read + steps)

    def compact(
        self, keep: Tensor, counts: tuple[int, ...], *, oldest: int | None = None, room: int = 0
    ) -> "LayerMemory":
        """Only the memories marked, packed to the right in their order, without gradient.

        Args:
            keep: [B, M] bool.
            counts: how many are marked in each row.
            oldest: the age of the oldest of them; looked up if not given.
            room: slots to leave free for what is read next.
        """
        slots, size = keep.size(1), max(counts)
        # A stable sort moves the marked to the end and leaves both groups in time order.
        order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, slots - size :]  # [B, size]
        data = self.states.new_empty(len(counts), size + room, self.states.size(-1))
        states = self.states.detach()
        if states.device.type == "cpu":
            for row, slots_of_row, into in zip(states, order, data):
                torch.index_select(row, 0, slots_of_row, out=into[:size])
        else:
            data[:, :size] = states[torch.arange(len(counts), device=order.device).unsqueeze(1), order]
        return LayerMemory(
            states=data[:, :size],
            age=self.age.masked_fill(~keep, EMPTY_AGE).gather(1, order),
            spans=None
            if self.spans is None
            else self.spans.gather(1, order.unsqueeze(-1).expand(-1, -1, self.spans.size(-1))),
            compressed=None if self.compressed is None else self.compressed.gather(1, order),
            held=counts,
            oldest=oldest,
            read=self.read,
            room=GrowableBuffer(data, size) if room else None,
        )

    def detach(self) -> "LayerMemory":
        return replace(self, states=self.states.detach())

    def reorder(self, rows: Tensor, numbers: Sequence[int] | None = None) -> "LayerMemory":
        """Rows picked (and repeated) by index, as beam search does; this memory itself if they are its own in order.

        What is picked has as much room to grow as there was, so that reading on from it does not copy it again.

        Args:
            rows: [B'] int64.
            numbers: the same, where no device needs to be waited for; looked up if not given.
        """
        numbers = rows.tolist() if numbers is None else numbers
        if list(numbers) == list(range(len(self.age))):
            return self
        room = None
        if self.room is None:
            states = self.states.index_select(0, rows)
        else:
            # One copy with the room behind it, instead of one more when there is something to append.
            room = GrowableBuffer(self.room.data.index_select(0, rows), self.age.size(1))
            states = room.data[:, : room.used]
        return LayerMemory(
            states=states,
            age=self.age.index_select(0, rows),
            spans=None if self.spans is None else self.spans.index_select(0, rows),
            compressed=None if self.compressed is None else self.compressed.index_select(0, rows),
            held=tuple(self.held[row] for row in numbers),
            oldest=self.oldest,
            read=self.read,
            room=room,
        )

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "LayerMemory":
        """On another device, or with the states in another floating-point type. Spans stay as precise as they are."""
        return LayerMemory(
            states=self.states.to(device=device, dtype=dtype),
            age=self.age.to(device=device),
            spans=None if self.spans is None else self.spans.to(device=device),
            compressed=None if self.compressed is None else self.compressed.to(device=device),
            held=self.held,
            oldest=self.oldest,
            read=self.read,
        )
