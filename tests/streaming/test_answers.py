"""Answers are counted as a plain loop over each row counts them, however the rows are cut into blocks."""

import pytest
import torch

from fairseq_expire.streaming.answers import AnswerTally
from fairseq_expire.streaming.corpus import FIRST_OF_ANSWER, IN_ANSWER, LAST_OF_ANSWER

ROWS, LENGTH = 4, 60


@pytest.fixture(params=range(6))
def rows(request):
    """Missed targets and flags [B, N], of random answers that the edges of rows may cut."""
    random = torch.Generator().manual_seed(request.param)
    missed = torch.rand(ROWS, LENGTH, generator=random) < 0.2
    flags = torch.zeros(ROWS, LENGTH, dtype=torch.uint8)
    for row in flags:
        # Some begin before the row, and some end behind it.
        place = -int(torch.randint(5, (), generator=random))
        while place < LENGTH:
            end = max(place, 0) + 1 + int(torch.randint(6, (), generator=random))
            row[max(place, 0) : end] |= IN_ANSWER
            if place >= 0:
                row[place] |= FIRST_OF_ANSWER
            if end <= LENGTH:
                row[end - 1] |= LAST_OF_ANSWER
            place = end + int(torch.randint(4, (), generator=random))
    return missed, flags


def plain(missed, flags):
    """Answers that a row has from their first target to the last one, and those of them with a missed target."""
    answers = wrong = 0
    for row_missed, row_flags in zip(missed.tolist(), flags.tolist()):
        right = None
        for miss, flag in zip(row_missed, row_flags):
            if flag & FIRST_OF_ANSWER:
                right = True
            if right is not None and flag & IN_ANSWER and miss:
                right = False
            if flag & LAST_OF_ANSWER and right is not None:
                answers, wrong, right = answers + 1, wrong + (not right), None
    return answers, wrong


@pytest.mark.parametrize("block", [1, 3, 17, 60])
def test_blocks_do_not_matter(rows, block):
    missed, flags = rows
    tally, found = AnswerTally(), [0, 0]
    for start in range(0, LENGTH, block):
        part = slice(start, start + block)
        counted = tally.count(missed[:, part], flags[:, part], offset=start)
        found = [one + other for one, other in zip(found, counted)]
    assert tuple(found) == plain(missed, flags)
    assert found[0] > 20


def test_targets_that_do_not_count_are_left_out(rows):
    """The targets of a labelled batch are those that count alone, with padding at the end of a row."""
    missed, flags = rows
    tally, found = AnswerTally(), [0, 0]
    for start in range(0, LENGTH, 7):
        part = [
            [line[start : start + 7][row[start : start + 7] > 0] for line in (missed[number], row)]
            for number, row in enumerate(flags)
        ]
        width = max(1, *(len(row) for _, row in part))
        compact = [torch.zeros(ROWS, width, dtype=kind) for kind in (torch.bool, torch.uint8)]
        for number, lines in enumerate(part):
            for whole, line in zip(compact, lines):
                whole[number, : len(line)] = line
        counted = tally.count(*compact, offset=start)
        found = [one + other for one, other in zip(found, counted)]
    assert tuple(found) == plain(missed, flags)


def test_a_block_that_is_run_twice_counts_the_same(rows):
    missed, flags = rows
    tally = AnswerTally()
    tally.count(missed[:, :20], flags[:, :20], offset=0)
    first = tally.count(missed[:, 20:40], flags[:, 20:40], offset=20)
    assert tally.count(missed[:, 20:40], flags[:, 20:40], offset=20) == first
    last = tally.count(missed[:, 40:], flags[:, 40:], offset=40)
    again = AnswerTally()
    again.count(missed[:, :40], flags[:, :40], offset=0)
    assert again.count(missed[:, 40:], flags[:, 40:], offset=40) == last


def test_micro_batches_have_rows_of_their_own(rows):
    missed, flags = rows
    tally, found = AnswerTally(), [0, 0]
    for start in range(0, LENGTH, 20):
        part = slice(start, start + 20)
        for micro_batch, lines in ((0, slice(0, 2)), (1, slice(2, 4))):
            counted = tally.count(missed[lines, part], flags[lines, part], micro_batch=micro_batch, offset=start)
            found = [one + other for one, other in zip(found, counted)]
    assert tuple(found) == plain(missed, flags)
