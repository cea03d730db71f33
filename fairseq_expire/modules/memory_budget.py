"""A ceiling on memory: of more memories than a budget, those go first that expire first.

Size legend: B rows, T queries of a block, S keys (memories, then the block), C keys that may have to go.

With a budget of N, a query sees its youngest W = max(1, N // 4) memories and, of the older ones, the N - W that end
last. A memory ends i + e_i, and of those that end together the younger one stays. This end does not depend on the
query: a memory that had to go was outlived by N - W others, and stays out. So which memories a query sees does not
depend on blocks, and all others can be deleted.
"""

import torch
from torch import Tensor

from fairseq_expire.modules.memory import EMPTY_AGE

# Ends are compared to this part of a step, as whole numbers, whose differences are exact at any age.
STEP = 1 << 24
# Stands for no key: below every end.
NONE = -(1 << 62)
# Queries that are looked at together: time and memory grow with their square.
PIECE = 64


def num_youngest(budget: int) -> int:
    """Returns W, how many of the memories that a query sees are the youngest ones, whatever their ends."""
    return max(1, budget // 4)


def hidden_by_budget(span: Tensor, age: Tensor, *, block: int, budget: int, next_start: Tensor | None = None) -> Tensor:
    """Finds the first query of a block from which each key is hidden since N others are seen.

    Args:
        span: [B, S] e_i, in steps.
        age: [B, S] int64, steps back from the first query, the oldest first; ``EMPTY_AGE`` or more where there is no
            key.
        block: T.
        budget: N.
        next_start: [B, S] int64, the first query that begins a new document after each key; keys of different documents
            do not count for each other. None for one document.
    Returns:
        [B, S] int64: 0 ... T, where T is the query after the block; T + 1 for keys that stay longer.
    """
    if block == 1:
        return _hidden_by_one(span, age, budget=budget)
    hidden_from = torch.full_like(age, block + 1)
    for start in range(0, block, PIECE):
        queries = min(PIECE, block - start)
        # What is hidden, or of a document that is over, counts for no later query.
        gone = hidden_from <= start
        if next_start is not None:
            gone |= next_start <= start
        now = _hidden_by_queries(
            span, (age + start).masked_fill(gone | (age >= EMPTY_AGE), EMPTY_AGE), queries, budget, next_start
        )
        hidden_from = torch.where((now <= queries) & ~gone, now + start, hidden_from)
    return hidden_from


def _ends(span: Tensor, age: Tensor, present: Tensor) -> Tensor:
    """[B, S] int64: the place where each key ends, relative to the first query, in units of ``1 / STEP`` steps."""
    return (span.double() * STEP).floor().to(torch.int64) - age.masked_fill(~present, 0) * STEP


def _hidden_by_one(span: Tensor, age: Tensor, *, budget: int) -> Tensor:
    """:func:`hidden_by_budget` for one query: all keys but the youngest are of its document."""
    youngest = num_youngest(budget)
    # The key that enters at the query after this one is older than the youngest then.
    present = (age >= youngest) & (age < EMPTY_AGE)
    _, order = _ends(span, age, present).masked_fill(~present, NONE).sort(dim=1, stable=True)
    num_gone = max(0, age.size(1) - (budget - youngest))
    hidden_from = torch.full_like(age, 2)
    if num_gone:
        entrant = age.gather(1, order) == youngest
        gone = torch.zeros_like(order[:, :num_gone])
        # At the query itself the entrant is no rival: where it stays, the last that goes is still seen.
        gone[:, -1] = entrant[:, num_gone:].any(dim=1)
        hidden_from.scatter_(1, order[:, :num_gone], gone.masked_fill_(entrant[:, :num_gone], 1))
    return hidden_from.masked_fill_(~present, 2)


def _hidden_by_queries(span: Tensor, age: Tensor, block: int, budget: int, next_start: Tensor | None) -> Tensor:
    """:func:`hidden_by_budget` for a few queries, T of them."""
    youngest = num_youngest(budget)
    older = budget - youngest
    keys = age.size(1)
    # The query from which a key is one of the older ones.
    enters = (youngest + 1 - age).clamp(min=0)
    present = (age < EMPTY_AGE) & (enters <= block)
    end = _ends(span, age, present)
    document = torch.zeros_like(age) if next_start is None else next_start

    # Those that are older at the first query, the first to go first: of equal ones the older, which stands before.
    old = present & (enters == 0)
    ends, order = end.masked_fill(~old, NONE).sort(dim=1, stable=True)
    hidden_from = torch.full_like(age, block + 1)
    hidden_from[:, : max(0, keys - older)].zero_()
    hidden_from = torch.full_like(age, block + 1).scatter_(1, order, hidden_from).masked_fill_(~old, block + 1)

    # At each later query one key enters, and at most one has to go: one that has entered, or one of the T first to go.
    entrants = _entrants(enters.masked_fill(~present, 0), block)  # [B, T]
    first = max(0, keys - older)
    candidates = torch.cat([order[:, first : first + block], entrants.clamp(min=0)], dim=1)  # [B, C]
    num_old = candidates.size(1) - block
    is_key = torch.cat([old.gather(1, candidates[:, :num_old]), entrants >= 0], dim=1)
    candidate_end, entrant_end = end.gather(1, candidates), end.gather(1, candidates[:, num_old:])
    own, others = document.gather(1, candidates), document.gather(1, candidates[:, num_old:])

    # How many others of its document outlive a candidate at the first query, or outlived it already when it entered.
    outlived = keys - 1 - torch.arange(first, first + num_old, device=age.device).expand(len(age), -1)
    of_entrants = keys - torch.searchsorted(ends, entrant_end, right=True)
    old_document = document.masked_fill(~old, -1).amax(dim=1, keepdim=True)
    outlived = torch.cat([outlived, of_entrants.masked_fill(others != old_document, 0)], dim=1)  # [B, C]

    # [B, C, T]: the key that enters at query 1 ... T outlives the candidate; it is younger than those before it.
    later = torch.arange(1, block + 1, device=age.device)
    entered = enters.gather(1, candidates).masked_fill(~is_key, block + 1).unsqueeze(2)
    outlives = (entrant_end.unsqueeze(1) > candidate_end.unsqueeze(2)) | (
        (entrant_end.unsqueeze(1) == candidate_end.unsqueeze(2)) & (later > entered)
    )
    outlives &= (others.unsqueeze(1) == own.unsqueeze(2)) & (entrants >= 0).unsqueeze(1)
    full = outlived.unsqueeze(2) + outlives.cumsum(dim=2, dtype=torch.int32) >= older
    goes = full & (later >= entered)
    when = torch.where(goes.any(dim=2), goes.to(torch.uint8).argmax(dim=2) + 1, block + 1)
    # A candidate that stands for no key changes nothing.
    return hidden_from.scatter_reduce_(1, candidates, when.masked_fill(~is_key, block + 1), "amin")


def _entrants(enters: Tensor, block: int) -> Tensor:
    """[B, T] int64: the key that enters at each of the queries 1 ... T, -1 where none does.

    Args:
        enters: [B, S] int64, the query at which each key enters; 0 for keys that do not.
        block: T.
    """
    slots = torch.arange(enters.size(1), device=enters.device).expand_as(enters)
    found = enters.new_full((len(enters), block + 1), -1).scatter_(1, enters, slots)
    return found[:, 1:]
