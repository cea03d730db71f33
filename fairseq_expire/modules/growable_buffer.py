"""GrowableBuffer for memories to grow in, without copying what is there for every token that is read."""

import threading

import torch
from torch import Tensor


class GrowableBuffer:
    """A tensor [B, capacity, W] whose first ``used`` slots are taken.

    Several memories may be views of one room: each is a value that never changes, since only slots that no memory has yet
    are ever written. Of two memories that grow from the same one, the first takes the room and the other moves out.
    """

    def __init__(self, data: Tensor, used: int):
        self.data = data
        self.used = used
        self._lock = threading.Lock()

    def __reduce__(self):
        # A lock can be neither copied nor saved.
        return GrowableBuffer, (self.data, self.used)

    def append(self, after: int, states: Tensor) -> Tensor | None:
        """Puts states behind the first ``after`` slots.

        Args:
            after: how many slots the memory that grows has.
            states: [B, T, W].
        Returns:
            [B, after + T, W], a view; or None if these slots are taken or the room is too small.
        """
        end = after + states.size(1)
        if self.data.is_inference() and not torch.is_inference_mode_enabled():
            return None
        with self._lock:
            if self.used != after or end > self.data.size(1):
                return None
            self.used = end
        self.data[:, after:end] = states
        return self.data[:, :end]
