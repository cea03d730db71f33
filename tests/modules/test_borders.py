"""Documents in one row, with borders between them, against each document by itself."""

import itertools

import pytest
import torch
from small_stacks import KINDS, LENGTH, MODES, make, text

from fairseq_expire.modules import Memory
from fairseq_expire.modules.borders import Borders

ROWS = 3
# Documents of many lengths, of one token among them; none, one and many borders in a block; no border at the start of
# the second row.
STARTS = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
STARTS[0, [0, 1, 2, 5, 30, 31, 100]] = True
STARTS[1, [64, 70, 129]] = True
STARTS[2, [0, 50]] = True
BLOCKS = pytest.mark.parametrize("block", [1, 7, 64, LENGTH])


def documents():
    """Yields (row, its tokens) for each document."""
    for row, starts in enumerate(STARTS):
        places = sorted({0, LENGTH, *starts.nonzero().flatten().tolist()})
        for start, stop in itertools.pairwise(places):
            yield row, slice(start, stop)


def read(stack, hidden, block, memory=None, starts=STARTS):
    """Returns the outputs [B, N, D], the sizes [B, N] and penalty [B] of the first layer, and the memory."""
    outputs, sizes, penalty = [], [], torch.zeros(len(hidden), dtype=torch.float64)
    for part, begins in zip(hidden.split(block, dim=1), starts.split(block, dim=1)):
        out = stack(part, memory, starts=begins)
        memory = out.memory
        outputs.append(out.hidden)
        sizes.append(out.reports[0].memory_size)
        if out.reports[0].penalty is not None:
            penalty = penalty + out.reports[0].penalty
    return torch.cat(outputs, dim=1), torch.cat(sizes, dim=1), penalty, memory


@KINDS
@MODES
@BLOCKS
@torch.no_grad()
def test_each_document_is_read_as_if_it_were_alone(kind, training, block):
    """Outputs, memory sizes and penalty."""
    stack, hidden = make(kind, pre_norm=training).train(training), text(ROWS)
    actual, sizes, penalty, _ = read(stack, hidden, block)
    expected_penalty = torch.zeros_like(penalty)
    for row, tokens in documents():
        alone = stack(hidden[row : row + 1, tokens])
        torch.testing.assert_close(actual[row, tokens], alone.hidden[0])
        assert torch.equal(sizes[row, tokens], alone.reports[0].memory_size[0])
        if alone.reports[0].penalty is not None:
            expected_penalty[row] += alone.reports[0].penalty[0]
    torch.testing.assert_close(penalty, expected_penalty)
    assert (sizes[STARTS] == 0).all()


@MODES
@torch.no_grad()
def test_with_deletion_switched_off(training):
    """A state that a border hides is deleted all the same."""
    expected = read(make("expire").train(training), text(ROWS), 16)
    kept = read(make("keep").train(training), text(ROWS), 16)
    torch.testing.assert_close(kept[0], expected[0])
    assert [int(count) for count in kept[3].layers[0].occupied.sum(dim=1)] == [30, 1, 80]


@KINDS
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_the_documents(kind, checkpointed):
    stack, hidden = make("shortened" if kind == "expire" else kind, checkpoint_activations=checkpointed), text(ROWS)
    weights = torch.randn(hidden.shape, dtype=hidden.dtype, generator=torch.Generator().manual_seed(2))

    def loss(out, weights):
        penalties = [report.penalty.sum() for report in out.reports if report.penalty is not None]
        return (out.hidden * weights).sum() + sum(penalties)

    parameters = list(stack.parameters())
    actual = torch.autograd.grad(loss(stack(hidden, starts=STARTS, shortening=0.6), weights), parameters)
    alone = [
        loss(stack(hidden[row : row + 1, tokens], shortening=0.6), weights[row : row + 1, tokens])
        for row, tokens in documents()
    ]
    expected = torch.autograd.grad(sum(alone), parameters)
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs)
    assert any(gradient.abs().max() > 0 for gradient in expected)


@KINDS
@MODES
@torch.no_grad()
def test_a_border_of_another_row_changes_nothing(kind, training):
    stack, hidden = make(kind).train(training), text(ROWS)
    others = STARTS.clone()
    others[1:] = False
    others[1:, [10, 40, 77]] = True
    torch.testing.assert_close(read(stack, hidden, 7)[0][0], read(stack, hidden, 7, starts=others)[0][0])


@KINDS
@MODES
@pytest.mark.parametrize("place", [20, 68, 110])
@torch.no_grad()
def test_memories_go_on_when_saved_picked_and_joined(kind, training, place):
    """Rows of documents that began at different times."""
    stack, hidden = make(kind).train(training), text(ROWS)
    whole = read(stack, hidden, 16)[0]
    before = read(stack, hidden[:, :place], 16, starts=STARTS[:, :place])[3]
    memory = Memory.from_state_dict(before.state_dict()).reorder(torch.tensor([2, 0]))
    memory = Memory.cat([memory, before.reorder(torch.tensor([1]))])
    assert memory.layers[0].tokens_read == tuple(before.layers[0].tokens_read[row] for row in (2, 0, 1))
    rows = [2, 0, 1]
    for block in (1, 9):
        after = read(stack, hidden[rows, place:], block, memory, STARTS[rows, place:])[0]
        torch.testing.assert_close(after, whole[rows, place:])


@KINDS
@torch.no_grad()
def test_text_that_is_skipped_may_begin_documents(kind):
    """What the memory keeps is what reading the skipped text would leave of the text before it."""
    stack, hidden = make(kind), text(ROWS)
    before = read(stack, hidden[:, :60], 16, starts=STARTS[:, :60])[3]
    after = before.skip(STARTS[:, 60:75])
    assert after.layers[0].tokens_read == (75 - 31, 75 - 70, 75 - 50)
    for layer, advanced in zip(after.layers, before.advance(15).layers):
        assert layer.counts[1] == 0
        for row in (0, 2):
            assert torch.equal(layer.age[row, layer.occupied[row]], advanced.age[row, advanced.occupied[row]])
    # A row whose document began in the skipped text goes on as one that read nothing of it.
    empty = stack.empty_memory(1, tokens_read=5)
    rest = hidden[:, 75:], STARTS[:, 75:]
    expected = read(stack, rest[0][1:2], 16, empty, rest[1][1:2])[0]
    torch.testing.assert_close(read(stack, rest[0], 16, after, rest[1])[0][1:2], expected)


@torch.no_grad()
def test_a_memory_that_was_saved_with_one_number_of_tokens():
    stack, hidden = make("compressive-mean"), text(2)
    memory = stack(hidden[:, :50]).memory
    old = {name: x[0] if name.endswith("tokens_read") else x for name, x in memory.state_dict().items()}
    assert old["0.tokens_read"].dim() == 0
    restored = Memory.from_state_dict(old)
    assert restored.layers[0].tokens_read == (50, 50)
    assert torch.equal(stack(hidden[:, 50:], restored).hidden, stack(hidden[:, 50:], memory).hidden)


def test_places_of_a_block():
    borders = Borders(torch.tensor([[False, True, False, True], [False] * 4]))
    age = torch.tensor([[7, 0, -1, -2, -3]] * 2)
    assert borders.next_start(age).tolist() == [[1, 1, 3, 3, 5], [5, 5, 5, 5, 5]]
    assert borders.document_start(age, torch.tensor([[9], [8]])).tolist() == [[-9, -9, 1, 1, 3], [-8] * 5]
    assert borders.tokens_of_last.tolist() == [1, 0]


@pytest.mark.parametrize(
    "starts, got",
    [
        (torch.zeros(3, 9, dtype=torch.bool), r"bool \[3, 10\], as the block, got torch.bool \[3, 9\]"),
        (torch.zeros(3, 10), r"got torch.float32 \[3, 10\]"),
        (torch.zeros(3, dtype=torch.bool), r"got torch.bool \[3\]"),
    ],
)
def test_starts_that_do_not_fit(starts, got):
    with pytest.raises(ValueError, match=f"starts marks the tokens that begin a document: expected {got}|{got}"):
        make()(text(3, 10), starts=starts)
