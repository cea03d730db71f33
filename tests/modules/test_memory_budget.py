"""A budget of memories, against a list that is sorted anew for every query."""

import random

import pytest
import torch
from small_stacks import LENGTH, MODES, RAMP, D, make, text

from fairseq_expire.modules import AdaptiveSpan, Compressive, ExpireSpan, FixedSpan, Memory
from fairseq_expire.modules.memory import EMPTY_AGE, SLOT_MULTIPLE
from fairseq_expire.modules.memory_budget import hidden_by_budget

ROWS, BUDGET = 3, 11
STARTS = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
STARTS[0, [0, 1, 2, 5, 30, 31, 100]] = True
STARTS[1, [64, 70, 129]] = True
BLOCKS = pytest.mark.parametrize("block", [1, 7, 64, LENGTH])


def seen(spans, budget, documents):
    """Yields for each query the places of the states that a budget lets it see, expired ones included."""
    youngest = max(1, budget // 4)
    for query, document in enumerate(documents):
        of_document = [place for place in range(query) if documents[place] == document]
        older = [place for place in of_document if query - place > youngest]
        older.sort(key=lambda place: (place + spans[place], place), reverse=True)
        yield {place for place in of_document if query - place <= youngest} | set(older[: budget - youngest])


@pytest.mark.parametrize("seed", range(150))
def test_it_is_the_list_sorted_anew(seed):
    """Rows of several lengths and documents, with empty slots, equal spans, and spans below a step."""
    choose = random.Random(seed)
    rows, budget, block = choose.randint(1, 3), choose.randint(1, 14), choose.choice([1, 2, 3, 7, 16, 64])
    length = choose.randint(1, 60)
    # Multiples of 1 / 8, so that Python's sums are exact.
    draw = choose.choice(
        [
            lambda place: choose.choice([0.125, 1.0, 5.0, 9.0]),
            lambda place: choose.randrange(320) / 8,
            lambda place: float(length - place),
        ]
    )
    spans = [[draw(place) for place in range(length)] for _ in range(rows)]
    begins = [[place > 0 and choose.random() < 0.06 for place in range(length)] for _ in range(rows)]
    documents = [[sum(row[: place + 1]) for place in range(length)] for row in begins]
    expected = [list(seen(*row)) for row in zip(spans, [budget] * rows, documents)]
    memories = [[] for _ in range(rows)]
    for start in range(0, length, block):
        stop = min(start + block, length)
        keys = [memory + list(range(start, stop)) for memory in memories]
        slots = max(map(len, keys)) + choose.randint(0, 3)
        empty = [slots - len(row) for row in keys]
        age = torch.tensor([[EMPTY_AGE + 3] * n + [start - key for key in row] for n, row in zip(empty, keys)])
        span = torch.tensor([[99.0] * n + [of[key] for key in row] for n, row, of in zip(empty, keys, spans)])
        starts = [[query for query in range(stop - start) if row[start + query]] for row in begins]
        none = stop - start + 1
        next_start = torch.tensor(
            [
                [none] * n + [min([query for query in of if start + query > key], default=none) for key in row]
                for n, row, of in zip(empty, keys, starts)
            ]
        )
        hidden = hidden_by_budget(span, age, block=stop - start, budget=budget, next_start=next_start)
        hidden = torch.minimum(hidden, next_start)
        for number, row in enumerate(keys):
            ends = hidden[number, empty[number] :].tolist()
            for query in range(start, stop):
                found = {key for key, end in zip(row, ends) if key < query < start + end}
                assert found == expected[number][query]
            memories[number] = [key for key, end in zip(row, ends) if end > stop - start]
            if stop < length and documents[number][stop] == documents[number][stop - 1]:
                # What the next query does not see is gone already.
                assert set(memories[number]) == expected[number][stop]


def test_ends_are_told_apart_at_any_age():
    """Two ends that differ by 2^-23 of a step, a million steps back, where single precision would not tell."""
    age = torch.tensor([[1_000_003, 1_000_002, 1_000_001, 5, 4, 3, 2, 1, 0]])
    span = torch.full((1, 9), 10.0)
    span[0, 0], span[0, 1] = 1_000_003 + 1.0, 1_000_002 + 1.0
    span[0, 2] = 1_000_001 + 1.0
    longer = torch.nextafter(torch.tensor(1.5), torch.tensor(2.0)).item()
    span[0, 3], span[0, 4] = 5 + longer, 5.5 - 1
    hidden = hidden_by_budget(span.double(), age, block=1, budget=4)
    # W = 1, and three of the older ones stay: all others end sooner than the two of age 5 and 2.
    order = sorted(range(8), key=lambda key: (span[0, key].item() - age[0, key].item(), key), reverse=True)
    older = [key for key in order if age[0, key] > 1]
    assert hidden[0].gt(0).nonzero().flatten().tolist() == sorted([*older[:3], 7, 8])


def budgeted(kind="expire", budget=BUDGET, **changes):
    stack = make(kind, **changes)
    for layer in stack.layers:
        layer.policy.memory_budget = budget
    return stack


def read(stack, hidden, block, starts=None):
    """Returns outputs [B, N, D], memory sizes [layers, B, N], penalty [B], how many were cut [B], and the memory."""
    memory, outputs, sizes, penalty, cut = None, [], [], 0, 0
    for number, part in enumerate(hidden.split(block, dim=1)):
        begins = None if starts is None else starts[:, number * block : number * block + part.size(1)]
        out = stack(part, memory, starts=begins)
        memory = out.memory
        outputs.append(out.hidden)
        sizes.append(torch.stack([report.memory_size for report in out.reports]))
        penalty = penalty + sum(report.penalty for report in out.reports)
        cut = cut + sum(report.cut_by_budget for report in out.reports)
        for layer in memory.layers:
            largest = int(layer.occupied.sum(dim=1).max())
            assert largest <= BUDGET
            assert layer.slots <= -(-largest // SLOT_MULTIPLE) * SLOT_MULTIPLE + block
    return torch.cat(outputs, dim=1), torch.cat(sizes, dim=2), penalty, cut, memory


class SeenByList(ExpireSpan):
    """Expire-Span of a text that is read in one piece, with a budget by the list above."""

    budget, documents = BUDGET, None

    def hidden_from(self, spans, memory, *, block, next_start):
        hidden = torch.full_like(memory.age, block + 1)
        for row, of in enumerate(spans.detach()[..., 0].tolist()):
            sets = list(seen(of, self.budget, self.documents[row]))
            for key in range(block):
                within = [query for query in range(key + 1, block) if key not in sets[query]]
                hidden[row, key] = min(within, default=block + 1)
        return hidden


@MODES
@BLOCKS
@pytest.mark.parametrize("starts", [None, STARTS], ids=["one document", "borders"])
@torch.no_grad()
def test_blocks_do_not_matter(training, block, starts):
    """Outputs, memory sizes, penalty and what was cut, against one piece that keeps everything."""
    hidden = text(ROWS)
    stack = budgeted(pre_norm=training).train(training)
    actual, sizes, penalty, cut, _ = read(stack, hidden, block, starts)
    whole = make(pre_norm=training).train(training)
    documents = (torch.zeros_like(STARTS) if starts is None else starts).cumsum(dim=1).tolist()
    for layer in whole.layers:
        layer.policy.__class__ = SeenByList
        layer.policy.documents = documents
    expected = whole(hidden)
    torch.testing.assert_close(actual, expected.hidden)
    assert torch.equal(sizes, torch.stack([report.memory_size for report in expected.reports]))
    torch.testing.assert_close(penalty, sum(report.penalty for report in expected.reports))
    assert sizes.max() <= BUDGET and (sizes == BUDGET).any()
    assert (cut > 0).all()
    if starts is None:
        # A memory that leaves when the next block begins a document counts as cut.
        assert torch.equal(cut, read(stack, hidden, LENGTH, starts)[3])
    # There is something to hide.
    assert not torch.allclose(actual, make(pre_norm=training).train(training)(hidden, starts=starts).hidden)


def test_cut_memories_are_those_hidden_before_their_ramp():
    stack = budgeted(num_layers=1)
    out = stack(text(ROWS))
    [report] = out.reports
    spans = report.span[..., 0].tolist()
    for row, of in enumerate(spans):
        sets = [*seen(of, BUDGET, [0] * LENGTH), set()]
        # The set of the query after the block, too.
        sets[-1] = list(seen([*of, 0.0], BUDGET, [0] * (LENGTH + 1)))[-1]
        cut = 0
        for key, span in enumerate(of):
            hidden = [query for query in range(key + 1, LENGTH + 1) if key not in sets[query]]
            masks = [1 + (span - (query - key)) / RAMP for query in range(key + 1, hidden[0])] if hidden else []
            on_ramp = [mask for mask in masks if 0 < mask < 1]
            expired = hidden and 1 + (span - (hidden[0] - key)) / RAMP <= 0
            cut += bool(hidden) and not on_ramp and not expired
        assert report.cut_by_budget[row] == cut


def test_gradients_in_training_with_shortening():
    """Sorted by spans that are not shortened; the same gradients from blocks as from the sum over one block."""
    stack, hidden = budgeted("shortened"), text(ROWS)
    expected = make("shortened")
    for layer in expected.layers:
        layer.policy.__class__ = SeenByList
        layer.policy.documents = [[0] * LENGTH] * ROWS
    for each in (stack, expected):
        out = each(hidden, shortening=0.6)
        (out.hidden.square().sum() + sum(report.penalty.sum() for report in out.reports)).backward()
    for (name, one), other in zip(stack.named_parameters(), expected.parameters()):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@torch.no_grad()
def test_other_rows_change_nothing():
    hidden = text(ROWS)
    together = read(budgeted(), hidden, 16)[0]
    for row in range(ROWS):
        torch.testing.assert_close(together[row : row + 1], read(budgeted(), hidden[row : row + 1], 16)[0])


@torch.no_grad()
def test_a_budget_begins_in_the_middle_of_a_text():
    """A memory that was made without one falls to the budget at once."""
    hidden, stack = text(ROWS), make().eval()
    memory = stack(hidden[:, :80]).memory
    limited = budgeted().eval()(hidden[:, 80:], memory)
    assert max(report.memory_size.max() for report in limited.reports) == BUDGET
    again = Memory.from_state_dict(limited.memory.state_dict())
    assert max(int(layer.occupied.sum(dim=1).max()) for layer in again.layers) == BUDGET


def test_fixed_and_adaptive_spans_end_in_order():
    assert FixedSpan(max_span=30, memory_budget=7).max_age == 7
    assert FixedSpan(max_span=5, memory_budget=7).max_age == 5
    hidden = text(ROWS)
    fixed, adaptive = make("fixed"), make("adaptive")
    expected_fixed, expected_adaptive = make("fixed", span=7), make("adaptive")
    for stack, policy in (
        (fixed, lambda: FixedSpan(max_span=40, memory_budget=7)),
        (expected_fixed, lambda: FixedSpan(max_span=7)),
        (adaptive, lambda: AdaptiveSpan(num_heads=2, max_span=40, ramp=6, memory_budget=7)),
    ):
        for layer in stack.layers:
            ratio = getattr(layer.policy, "ratio", None)
            layer.policy = policy().double()
            if ratio is not None:
                layer.policy.ratio.data = ratio.data
    for layer in expected_adaptive.layers:
        layer.policy.max_distance = 7
    for stack, expected in ((fixed, expected_fixed), (adaptive, expected_adaptive)):
        with torch.no_grad():
            found = stack(hidden)
            torch.testing.assert_close(found.hidden, expected(hidden).hidden)
        assert max(report.memory_size.max() for report in found.reports) == 7
        assert {report.cut_by_budget for report in found.reports} == {None}


@pytest.mark.parametrize("budget", [0, -3, 2.5, True])
@pytest.mark.parametrize(
    "policy",
    [
        lambda budget: ExpireSpan(embed_dim=D, max_span=9, ramp=1, span_init=3.0, memory_budget=budget),
        lambda budget: FixedSpan(max_span=9, memory_budget=budget),
        lambda budget: AdaptiveSpan(num_heads=1, max_span=9, ramp=1, memory_budget=budget),
    ],
    ids=["expire", "fixed", "adaptive"],
)
def test_a_budget_is_a_number_of_memories(policy, budget):
    with pytest.raises(ValueError, match=f"memory_budget .* expected a whole number from 1 on or none, got {budget}"):
        policy(budget)


def test_the_compressive_memory_has_none():
    with pytest.raises(
        ValueError, match=r"memory_budget 5: the compressive memory always has max_span .* = 17 memories"
    ):
        Compressive(max_span=9, compressed_size=8, rate=3, memory_budget=5)
