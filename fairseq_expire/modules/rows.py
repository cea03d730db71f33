"""Memories of texts that were read by themselves, side by side from here on.

Size legend: B rows, M memories held.
"""

from collections.abc import Sequence

from torch import Tensor

from fairseq_expire.modules.layer_memory import EMPTY_AGE, LayerMemory


def joined(memories: Sequence[LayerMemory]) -> LayerMemory:
    """The rows of all of them, one below the other.

    Raises:
        ValueError: if they do not hold the same kind of states of equally long texts.
    """
    kinds = {(m.read, m.states.size(-1), m.spans is None) for m in memories}
    if len(kinds) != 1:
        raise ValueError(
            "memories can be joined if they have read equally many tokens and hold the same kind of states, got "
            f"{', '.join(str(m.read) for m in memories)} tokens with states of widths "
            f"{', '.join(str(m.states.size(-1)) for m in memories)}"
        )
    slots = max(m.age.size(1) for m in memories)
    has_compressed = any(m.compressed is not None for m in memories)
    return LayerMemory(
        states=_stacked([m.states for m in memories], slots, 0),
        age=_stacked([m.age for m in memories], slots, EMPTY_AGE),
        spans=None if memories[0].spans is None else _stacked([m.spans for m in memories], slots, 0),
        compressed=_stacked([m.compressed_slots() for m in memories], slots, False) if has_compressed else None,
        held=tuple(count for m in memories for count in m.held),
        oldest=max(m.oldest for m in memories),
        read=memories[0].read,
    )


def _stacked(parts: Sequence[Tensor], slots: int, empty: int | bool) -> Tensor:
    """[B', M', ...] each -> [sum of B', slots, ...], the youngest slots of each; ``empty`` before them."""
    rows = sum(len(part) for part in parts)
    whole = parts[0].new_full((rows, slots, *parts[0].shape[2:]), empty)
    first = 0
    for part in parts:
        whole[first : first + len(part), slots - part.size(1) :] = part
        first += len(part)
    return whole
