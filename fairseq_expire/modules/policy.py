"""What a memory policy is: the one thing in which the models compared here differ.

Size legend: B rows, N states of any shape, S = M + T candidates (the memory, then the block itself), D width, H heads of a
span (1 if the heads share it).
"""

from typing import Optional, Tuple

from torch import Tensor, nn

from .memory import LayerMemory


class MemoryPolicy(nn.Module):
    """How one layer remembers: every state gets a span, the number of steps that it is seen in full.

    After its span a state fades out over ``ramp`` steps, m = clamp(1 + (span - distance) / ramp, 0, 1), and is then deleted. A
    policy says what the spans are; attention, storage and reports follow from them and are the same for all.

    Args:
        ramp: R, in steps; 1 is a hard edge, since distances are whole steps.
    Raises:
        ValueError: if ``ramp`` is below 1.
    """

    def __init__(self, *, ramp: float):
        super().__init__()
        if ramp < 1:
            raise ValueError(f"ramp is the length of the soft edge in steps: expected at least 1, got {ramp}")
        self.ramp = ramp

    def spans(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., H], how many steps each state stays, in float32 or better (half precision cannot count to L).

        Args:
            states: as attention reads them (after the layer norm in a pre-norm layer).
        """
        raise NotImplementedError

    def draw_shortening(self) -> Optional[float]:
        """The random factor with which the spans of the next training block are cut, or None if they are not.

        Drawn once for a block and shared by all layers.
        """
        return None

    def shortened(self, spans: Tensor, shortening: Optional[float]) -> Tensor:
        """The spans as one block sees them, under what :meth:`draw_shortening` gave. They do not delete anything."""
        return spans

    def penalty(self, spans: Tensor, left: Tensor, age: Tensor, *, block: int, padding: Optional[Tensor]) -> Optional[Tensor]:
        """[B], what is added to the loss of each row, summed over the block's queries and before its weight; or None.

        Args:
            spans: [B, H, S], shortened.
            left: [B, H, S], see soft_mask.py.
            age: [B, S].
            block: T.
            padding: [B, T] bool, True for queries that stand for no token, or None.
        """
        return None

    def retain(self, candidates: LayerMemory, spans: Tensor) -> Tuple[LayerMemory, Tensor]:
        """What is remembered after the block.

        Args:
            candidates: the memory and the block, with ages as the *next* block's first query sees them.
            spans: [B, S, H], not shortened.
        Returns:
            the candidates, and [B, S] bool: those that some later query can still see. The rest is deleted for good.
        """
        return candidates, candidates.age < spans.detach().amax(dim=-1) + self.ramp


def check_span_limit(span_limit: Optional[int]) -> None:
    """Raises ValueError unless it is None or a number of steps."""
    if span_limit is not None and span_limit < 1:
        raise ValueError(f"span_limit is a number of steps: expected at least 1 or none, got {span_limit}")
