"""A buffer in which memories grow, so that reading token by token does not copy what is stored."""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class GrowableBuffer:
    """Tensors [B, capacity, ...] by name, whose first ``used`` slots are taken.

    Several memories may be views of one buffer. Each is a value that never changes, since only slots that no memory has
    are written. Of two memories that grow from the same one, the first takes the free slots and the other one is
    copied.

    Args:
        tensors: the tensors by name; not empty, with equal numbers of rows and slots.
        used: number of slots that are taken.
    """

    def __init__(self, tensors: dict[str, Tensor], used: int):
        self.tensors = tensors
        self.used = used
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A lock can be neither copied nor pickled.
        return GrowableBuffer, (self.tensors, self.used)

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        return next(iter(self.tensors.values())).size(1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, free slots included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def append(self, start: int, new: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Writes new slots behind the first ``start`` ones.

        Args:
            start: number of slots of the memory that grows.
            new: a tensor [B, N, ...] for each name.
        Returns:
            views [B, start + N, ...] by name; or None if other names are given, these slots are taken, there are too
            few, or the buffer was made in inference mode and that mode is off now.
        """
        if new.keys() != self.tensors.keys():
            return None
        tensors = [(self.tensors[name], tensor, name) for name, tensor in new.items()]
        stored, tensor, _ = tensors[0]
        end = start + tensor.size(1)
        if stored.is_inference() and not torch.is_inference_mode_enabled():
            return None
        with self._lock:
            if self.used != start or end > stored.size(1):
                return None
            self.used = end
        views = {}
        for stored, tensor, name in tensors:
            stored[:, start:end] = tensor
            views[name] = stored[:, :end]
        return views
