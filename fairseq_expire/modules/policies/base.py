"""What a memory policy is: the one thing in which the models compared here differ.

Size legend: B rows, N states of any shape, S = M + T candidates (the memory, then the block itself), D width, H heads of a
span (1 if the heads share it).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_expire.modules.layer_memory import LayerMemory
from fairseq_expire.modules.visibility import Compressed

# Spans and distances are compared in single precision, which tells whole steps apart up to here.
MOST_STEPS = 1 << 24


@dataclass(frozen=True)
class NewlyCompressed:
    """Memories compressed while a block is read: G of them, each of c states.

    Args:
        states: [B, G, D], in the place of a layer's input.
        age: [B, G] int64, steps from the block's first query back to the oldest of the states that each stands for;
            ``EMPTY_AGE`` or more where there is none.
    """

    states: Tensor
    age: Tensor


class MemoryPolicy(nn.Module):
    """How one layer remembers: every state gets a span, the number of steps that it is seen in full.

    After its span a state fades out over ``ramp`` steps, m = clamp(1 + (span - distance) / ramp, 0, 1), and is then deleted. A
    policy says what the spans are; attention, storage and reports follow from them and are the same for all. It may also
    compress old states, several into one. Only :meth:`spans` has to be written; all else has a default.

    Args:
        ramp: R, in steps; 1 is a hard edge, since distances are whole steps.
    Raises:
        ValueError: if ``ramp`` is below 1 or more than ``MOST_STEPS``.
    """

    # Nothing is seen from further than this many steps, whatever its span; None for no limit.
    longest: int | None = None
    # While scoring, no span is longer than this many steps; None for no limit.
    span_limit: int | None = None
    # Whether old states are compressed; then the three methods on that, below, are called.
    compresses = False

    def __init__(self, *, ramp: float):
        super().__init__()
        check_steps("ramp is the length of the soft edge in steps", ramp)
        self.ramp = ramp

    @property
    def reach(self) -> int | None:
        """Nothing is remembered of what was read more than this many steps ago; None if there is no such limit. So much is
        read again where a memory was lost."""
        return self.longest

    def spans(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., H], how many steps each state stays, in float32 or better (half precision cannot count to L).

        Args:
            states: as attention reads them (after the layer norm in a pre-norm layer).
        """
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """:meth:`spans`; as a call of the module, what looks for a NaN between modules (fairseq's NanDetector) sees them."""
        return self.spans(states)

    def draw_shortening(self) -> float | None:
        """The random factor with which the spans of the next training block are cut, or None if they are not.

        Drawn once for a block and shared by all layers.
        """
        return None

    def shortened(self, spans: Tensor, shortening: float | None) -> Tensor:
        """The spans as one block sees them, under what :meth:`draw_shortening` gave. They do not delete anything."""
        return spans

    def penalty(self, spans: Tensor, left: Tensor, age: Tensor, *, block: int, padding: Tensor | None) -> Tensor | None:
        """[B], what is added to the loss of each row, summed over the block's queries and before its weight; or None.

        Args:
            spans: [B, H, S], shortened.
            left: [B, H, S], see soft_mask.py.
            age: [B, S].
            block: T.
            padding: [B, T] bool, True for queries that stand for no token, or None.
        """
        return None

    def retain(self, candidates: LayerMemory, spans: Tensor) -> tuple[LayerMemory, Tensor]:
        """What is remembered after the block.

        Args:
            candidates: the memory and the block, with ages as the *next* block's first query sees them.
            spans: [B, S, H], not shortened.
        Returns:
            the candidates, and [B, S] bool: those that some later query can still see. The rest is deleted for good.
        """
        seen = candidates.age < spans.detach().amax(dim=-1) + self.ramp
        return candidates, seen if self.longest is None else seen & (candidates.age <= self.longest)

    def bounds(self) -> Iterator[tuple[nn.Parameter, float, float]]:
        """Parameters with the least and the most that they may be, to which :func:`keep_bounds` holds them."""
        return iter(())

    @property
    def compressed_span(self) -> float:
        """The span of every compressed memory, in steps from the oldest state that it stands for."""
        raise NotImplementedError

    def compressed(self, slots: Tensor) -> Compressed:
        """How compressed memories are seen.

        Args:
            slots: [B, S] bool, which candidates they are.
        """
        raise NotImplementedError

    def compress(self, memory: LayerMemory, states: Tensor, padding: Tensor | None) -> NewlyCompressed:
        """What is seen compressed from this block on. Nothing flows back from where it is seen.

        Args:
            memory: before the block. Its last D columns hold the layer's inputs, also where keys and values are before them.
            states: [B, T, D], the layer's input for the block.
            padding: [B, T] bool, or None.
        """
        raise NotImplementedError


@torch.no_grad()
def keep_bounds(module: nn.Module) -> None:
    """Brings every parameter of the memory policies in ``module`` back into its range; to be called after each optimiser step."""
    for policy in module.modules():
        if isinstance(policy, MemoryPolicy):
            for parameter, least, most in policy.bounds():
                parameter.clamp_(least, most)


def check_steps(what: str, steps: float) -> None:
    """Raises ValueError unless it is a number of steps that spans can be counted in.

    Args:
        what: the argument and what it means, for the message.
    """
    # Not the other way round: no comparison with a NaN is true.
    if not steps >= 1:
        raise ValueError(f"{what}: expected at least 1, got {steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"{what}: expected at most {MOST_STEPS}, as far as single precision counts, got {steps}")


def check_span_limit(span_limit: int | None) -> None:
    """Raises ValueError unless it is None or a number of steps."""
    if span_limit is not None and not span_limit >= 1:
        raise ValueError(f"span_limit is a number of steps: expected at least 1 or none, got {span_limit}")
