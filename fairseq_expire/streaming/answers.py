"""Answers: stretches of targets that count as right only if every target of them is predicted.

Size legend: B rows, C targets of a row in a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_expire.streaming.corpus import FIRST_OF_ANSWER, IN_ANSWER, LAST_OF_ANSWER


class AnswerCount(NamedTuple):
    """Numbers of answers that ended, and of those in which a target was missed."""

    answers: int
    wrong: int


class _Open(NamedTuple):
    """The answers that a block leaves open.

    Args:
        offset: place of the block in its rows.
        before, after: [2, B] bool, before the block and after it: an answer is open, a target of it was missed.
    """

    offset: int
    before: Tensor
    after: Tensor


class AnswerTally:
    """Counts the answers of one pass over a split, block by block.

    An answer may be cut by the edge of a block, and is counted in the block in which it ends. One that is cut by the
    edge of a row is not counted.
    """

    def __init__(self) -> None:
        # By micro-batch: each has rows of its own.
        self._open: dict[int, _Open] = {}

    def count(self, missed: Tensor, flags: Tensor, *, micro_batch: int = 0, offset: int = 0) -> AnswerCount:
        """Counts the answers that end in a block. A block that is run twice counts the same both times.

        Args:
            missed: [B, C] bool, the targets that were not predicted; anything outside of answers.
            flags: [B, C], see :data:`~fairseq_expire.streaming.corpus.IN_ANSWER`.
            micro_batch: the micro-batch that the block belongs to.
            offset: number of tokens before the block in its rows.
        """
        last = self._open.get(micro_batch)
        if last is None:
            before = missed.new_zeros(2, missed.size(0))
        else:
            before = last.before if last.offset == offset else last.after
        # The answer that is open stands in front, as one target.
        first = _has(flags, FIRST_OF_ANSWER, before[0])
        end = _has(flags, LAST_OF_ANSWER, torch.zeros_like(before[0]))
        missed = torch.cat([before[1].unsqueeze(1), missed & _has(flags, IN_ANSWER)], dim=1)
        # The number of the answer that each target belongs to; 0 for one that began before the row.
        number = first.cumsum(dim=1)  # [B, 1 + C]
        per_answer = number.new_zeros(len(number), number.size(1) + 1)
        wrong = per_answer.scatter_add(1, number, missed.to(number.dtype)) > 0
        ended = per_answer.scatter_add(1, number, end.to(number.dtype)) > 0
        wrong[:, 0] = ended[:, 0] = False
        current = number[:, -1:]
        still_open = (current > 0) & ~ended.gather(1, current)
        after = torch.stack([still_open, still_open & wrong.gather(1, current)])[..., 0]
        self._open[micro_batch] = _Open(offset, before, after)
        return AnswerCount(int(ended.sum()), int((ended & wrong).sum()))


def _has(flags: Tensor, bit: int, before: Tensor | None = None) -> Tensor:
    """[B, C] bool; [B, 1 + C] with the values ``before`` [B] in front."""
    found = (flags & bit) > 0
    return found if before is None else torch.cat([before.unsqueeze(1), found], dim=1)
