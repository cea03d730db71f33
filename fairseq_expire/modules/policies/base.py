"""The memory policy: the one thing in which the models compared here differ.

Size legend: B rows, S = M + T memories and tokens of the block, G memories that a policy adds, D width, H heads of a
span (1 if the heads share it).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fairseq_expire.modules.borders import Borders
from fairseq_expire.modules.memory import LayerMemory
from fairseq_expire.modules.visibility import Visibility

# Spans and distances are compared in single precision, which tells whole steps apart up to here.
MOST_STEPS = 1 << 24


class CompressedStates(NamedTuple):
    """Memories that stand for several states each.

    Args:
        inputs: [B, G, D], in the place of a layer's inputs.
        age: [B, G] int64, steps from the block's first query back to the oldest state that each stands for;
            ``EMPTY_AGE`` or more where there is none.
        min_distance: [B, G] int64, the distance from which on each is seen; more than 1.
    """

    inputs: Tensor
    age: Tensor
    min_distance: Tensor


class ParameterBounds(NamedTuple):
    """A parameter with its least and its greatest value."""

    parameter: nn.Parameter
    least: float
    most: float


class MemoryPolicy(nn.Module):
    """Rule by which one layer remembers: every state gets a span, the number of steps for which it is seen in full.

    After its span a state fades out over ``ramp`` steps, m = clamp(1 + (span - distance) / ramp, 0, 1), and is then
    deleted. A policy says what the spans are. Attention, deletion, storage and reports follow from them and are the
    same for all policies.

    Only :meth:`spans` has to be written; everything else has a default.

    Args:
        ramp: R, in steps; 1 is a hard edge, since distances are whole steps.
    Raises:
        ValueError: if ``ramp`` is below 1 or more than ``MOST_STEPS``.
    """

    # No state is seen from further back than this many steps, whatever its span; None for no limit.
    max_distance: int | None = None
    # While scoring, no span is longer than this many steps; None for no limit.
    span_limit: int | None = None
    # A query sees at most this many memories of the layer; None for no limit.
    memory_budget: int | None = None
    # True if the layer's inputs are stored beside keys and values (see :class:`LayerMemory`), for :meth:`compress`.
    keeps_inputs: bool = False
    # Steps between two neighbouring positions of compressed memories.
    stride: int = 1

    def __init__(self, *, ramp: float):
        super().__init__()
        check_steps("ramp is the length of the soft edge in steps", ramp)
        self.ramp = ramp

    @property
    def max_age(self) -> int | None:
        """Largest age, in steps, of a state that the memory may hold; None for no limit.

        A memory that was lost is made again from so many tokens.
        """
        return self.max_distance

    def spans(self, states: Tensor) -> Tensor:
        """Returns the span of each state in steps, [..., D] -> [..., H].

        Args:
            states: [..., D], the layer's inputs, after the layer norm of a pre-norm layer.
        Returns:
            spans in float32 or better: half precision cannot count to L.
        """
        raise NotImplementedError

    def limit_spans(self, spans: Tensor) -> Tensor:
        """Cuts spans to ``span_limit`` while scoring; returns them as they are in training or without a limit."""
        return spans if self.span_limit is None or self.training else spans.clamp(max=self.span_limit)

    def forward(self, states: Tensor) -> Tensor:
        """Calls :meth:`spans`; fairseq's NanDetector sees the outputs of modules that are called."""
        return self.spans(states)

    def draw_shortening(self) -> float | None:
        """Returns the random factor by which the spans of the next training block are cut; None if they are not.

        It is drawn once for a block and shared by all layers.
        """
        return None

    def shorten(self, spans: Tensor, shortening: float | None) -> Tensor:
        """Returns spans as one block sees them; shortened spans delete nothing.

        Args:
            spans: [B, S, H].
            shortening: what :meth:`draw_shortening` returned.
        """
        return spans

    def visibility(
        self,
        spans: Tensor,
        memory: LayerMemory,
        *,
        block: int,
        shortening: float | None = None,
        next_start: Tensor | None = None,
    ) -> Visibility:
        """Returns the visibility of memories and block to the block's queries.

        Args:
            spans: [B, S, H].
            memory: memories and block [B, S], with ages as the block's first query sees them.
            block: T.
            shortening: what :meth:`draw_shortening` returned.
            next_start: [B, S] int64, the first query of the block that begins a new document after each key; more than
                T if none does. None if documents have no borders.
        """
        max_distance = self.max_distance
        # A limit beyond all ages hides nothing; leaving it out saves work.
        if max_distance is not None and memory.min_distance is None and memory.oldest + block <= max_distance:
            max_distance = None
        return Visibility.of(
            span=self.shorten(spans, shortening).transpose(1, 2),
            age=memory.age,
            block=block,
            ramp=self.ramp,
            max_distance=max_distance,
            min_distance=memory.min_distance,
            hidden_from=self.hidden_from(spans, memory, block=block, next_start=next_start),
            stride=self.stride,
        )

    def hidden_from(
        self, spans: Tensor, memory: LayerMemory, *, block: int, next_start: Tensor | None
    ) -> Tensor | None:
        """Returns the first query of the block from which each key is hidden, whatever its span, [B, S] int64.

        By default, that is where the next document begins; a policy may hide a key sooner. More than T for a key that
        stays visible after the block; None if no key has such a bound.

        Args:
            spans: [B, S, H], not shortened.
            memory, block, next_start: as in :meth:`visibility`.
        """
        return next_start

    def penalty(self, visibility: Visibility, *, padding: Tensor | None) -> Tensor | None:
        """Returns the penalty of each row [B], summed over the block's queries and before its weight; None for none.

        Args:
            visibility: of memories and block, with shortened spans.
            padding: [B, T] bool, True for queries that stand for no token; or None.
        """
        return None

    def cut_by_budget(self, visibility: Visibility, *, next_start: Tensor | None) -> Tensor | None:
        """Counts the memories of each row [B] int64 that a budget hid before any query saw them on their ramp, which
        random shortening does not change here; None without a budget.

        Args:
            visibility: of memories and block, with spans that are not shortened.
            next_start: as in :meth:`visibility`.
        """
        return None

    def retain(self, visibility: Visibility) -> Tensor:
        """Marks the memories and tokens that stay after the block, [B, S] bool; all others are deleted for good.

        This is a hook; all policies here use the default. What ``hidden_from`` hides from later queries is deleted
        whatever this returns.

        Args:
            visibility: of memories and block, with spans that are not shortened.
        """
        return visibility.visible_later

    def compress(
        self, memory: LayerMemory, inputs: Tensor, padding: Tensor | None, borders: Borders | None = None
    ) -> CompressedStates | None:
        """Makes memories that stand for several older states each; they are appended before the block is read.

        No gradient flows through them.

        Args:
            memory: before the block, with ages as its first query sees them, and with ``inputs`` if ``keeps_inputs`` is
                set.
            inputs: [B, T, D], the layer's inputs for the block, without gradient.
            padding: [B, T] bool, True where the block has no token; or None.
            borders: between documents, which share no compressed memory; or None.
        Returns:
            the new memories; or None if the policy never makes any.
        """
        return None

    def bounds(self) -> Iterator[ParameterBounds]:
        """Yields the bounds of parameters, to which :func:`keep_bounds` clamps them."""
        return iter(())


@torch.no_grad()
def keep_bounds(module: nn.Module) -> None:
    """Brings every parameter of the memory policies in ``module`` back into its bounds; to be called after each
    optimizer step.
    """
    for policy in module.modules():
        if isinstance(policy, MemoryPolicy):
            for parameter, least, most in policy.bounds():
                parameter.clamp_(least, most)


def check_steps(what: str, steps: float) -> None:
    """Checks a number of steps that spans are counted in.

    Args:
        what: the argument and its meaning, for the message.
        steps: its value.
    Raises:
        ValueError: if it is below 1, above ``MOST_STEPS`` or NaN.
    """
    # No comparison with NaN is true.
    if not steps >= 1:
        raise ValueError(f"{what}: expected at least 1, got {steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"{what}: expected at most {MOST_STEPS}, as far as single precision counts, got {steps}")


def equal_spans(states: Tensor, steps: float) -> Tensor:
    """Makes the same span for all states: [..., D] -> [..., 1], in float32 or better."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    return torch.full((*states.shape[:-1], 1), float(steps), dtype=dtype, device=states.device)


def check_memory_budget(memory_budget: int | None) -> None:
    """Raises ValueError unless the budget is None or a number of memories."""
    if memory_budget is not None and (type(memory_budget) is not int or memory_budget < 1):
        raise ValueError(
            "memory_budget is how many memories of a layer a query sees: expected a whole number from 1 on or none, "
            f"got {memory_budget}"
        )


def check_span_limit(span_limit: int | None) -> None:
    """Raises ValueError unless the limit is None or a number of steps."""
    if span_limit is not None and not span_limit >= 1:
        raise ValueError(f"span_limit is a number of steps: expected at least 1 or none, got {span_limit}")
