"""What a memory policy is: the one thing in which the models compared here differ.

Size legend: B rows, K heads, T queries of the block, S = M + T candidates (the memory, then the block itself), D width.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

from torch import Tensor, nn

from .memory import LayerMemory


@dataclass(frozen=True)
class View:
    """What the queries of one block may see, and what it costs.

    Args:
        bias: [B, 1 or K, T, S], added to the attention scores: log of the soft mask, -inf where nothing is seen.
        visible: [B, T, S] bool, what each query sees: the set C_t.
        expiry: [B, S], the distance in steps from which a candidate is seen no more.
        span: [B, S], how many steps each candidate stays, as the policy reports it.
        penalty: [B], what the policy asks to be added to the loss of each row, summed over the block's queries and
            before its weight, or None.
    """

    bias: Tensor
    visible: Tensor
    expiry: Tensor
    span: Tensor
    penalty: Optional[Tensor]


class MemoryPolicy(nn.Module):
    """How one layer remembers: what attention may see, what is kept after a block, what it asks of the loss."""

    def draw_shortening(self) -> Optional[float]:
        """The random factor with which the spans of the next training block are cut, or None if they are not.

        Drawn once for a block and shared by all layers.
        """
        return None

    def view(
        self, candidates: Tensor, distance: Tensor, *, padding: Optional[Tensor], shortening: Optional[float]
    ) -> View:
        """What the block sees.

        Args:
            candidates: [B, S, D], the states as attention reads them (after the layer norm in a pre-norm layer).
            distance: [B, T, S] int64, steps from query t back to candidate i; a query sees only distances >= 1.
            padding: [B, T] bool, True for queries that stand for no token, or None.
            shortening: what :meth:`draw_shortening` gave for this block.
        """
        raise NotImplementedError

    def retain(self, candidates: LayerMemory, view: View) -> Tuple[LayerMemory, Tensor]:
        """What is remembered after the block.

        Args:
            candidates: the memory and the block, with ages as the *next* block's first query sees them.
            view: what :meth:`view` said of the block just read.
        Returns:
            the candidates, and [B, S] bool: those that some later query can still see. The rest is deleted for good.
        """
        return candidates, candidates.age < view.expiry
