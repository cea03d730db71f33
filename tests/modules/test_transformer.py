"""What always holds of the stack (design, section 6)."""

import numpy as np
import pytest
import torch

import reader
from fairseq_expire.modules import ExpireSpan, FixedSpan, LayerMemory, Memory, MemoryTransformer

D, K, SPAN, RAMP, LENGTH = 16, 2, 40, 6, 130


class KeepEverything(ExpireSpan):
    """Deletion switched off."""

    def retain(self, candidates, view):
        return candidates, torch.ones_like(candidates.age, dtype=torch.bool)


def make(kind="expire", pre_norm=False, **changes):
    torch.manual_seed(0)
    policies = {
        "expire": lambda: ExpireSpan(embed_dim=D, max_span=SPAN, ramp=RAMP, span_init=12.0),
        "keep": lambda: KeepEverything(embed_dim=D, max_span=SPAN, ramp=RAMP, span_init=12.0),
        "shortened": lambda: ExpireSpan(embed_dim=D, max_span=SPAN, ramp=RAMP, span_init=12.0, shortening=True),
        "fixed": lambda: FixedSpan(max_span=SPAN),
    }
    settings = dict(embed_dim=D, num_heads=K, ffn_dim=24, num_layers=3, position_range=9, policy=policies[kind])
    stack = MemoryTransformer(**{**settings, **changes}, pre_norm=pre_norm).double()
    for layer in stack.layers:
        if isinstance(layer.policy, ExpireSpan):
            # Spans that differ from token to token.
            torch.nn.init.normal_(layer.policy.predictor.weight, std=0.5)
    return stack


def text(rows=3, length=LENGTH):
    return torch.randn(rows, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(stack, hidden, block):
    """The outputs over the whole text, and the memory after each block."""
    memory, outputs, memories = None, [], []
    for part in hidden.split(block, dim=1):
        out = stack(part, memory)
        memory = out.memory
        outputs.append(out.hidden)
        memories.append(memory)
    return torch.cat(outputs, dim=1), memories


KINDS = pytest.mark.parametrize("kind", ["expire", "fixed"])
NORMS = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])


@KINDS
@NORMS
@torch.no_grad()
def test_equals_a_reader_that_keeps_everything(kind, pre_norm):
    stack, hidden = make(kind, pre_norm), text()
    state = {name: tensor.numpy() for name, tensor in stack.state_dict().items()}
    mask = reader.expire_span_mask(max_span=SPAN, ramp=RAMP) if kind == "expire" else reader.fixed_span_mask(max_span=SPAN)
    actual, _ = run(stack, hidden, 7)
    for row in range(len(hidden)):
        expected = reader.read(state, hidden[row].numpy(), heads=K, pre_norm=pre_norm, mask_of=mask)
        np.testing.assert_allclose(actual[row], expected, atol=1e-10)


@KINDS
@NORMS
@pytest.mark.parametrize("block", [1, 7, 64])
@torch.no_grad()
def test_block_length_changes_nothing(kind, pre_norm, block):
    stack, hidden = make(kind, pre_norm), text()
    whole, _ = run(stack, hidden, LENGTH)
    torch.testing.assert_close(run(stack, hidden, block)[0], whole)


@torch.no_grad()
def test_deletion_changes_nothing():
    kept, memories = run(make("keep"), text(), 16)
    deleted, fewer = run(make("expire"), text(), 16)
    torch.testing.assert_close(deleted, kept)
    assert memories[-1].sizes[0] == LENGTH > max(fewer[-1].sizes)


@KINDS
@torch.no_grad()
def test_the_future_changes_nothing(kind):
    stack, hidden = make(kind), text()
    changed = hidden.clone()
    changed[:, 50:] += 1
    assert torch.equal(run(stack, hidden, 7)[0][:, :49], run(stack, changed, 7)[0][:, :49])


@torch.no_grad()
def test_another_row_changes_nothing_however_long_its_memory():
    stack = make()
    hidden = text(rows=2)
    # A constant row whose states all ask to stay; the row under test must not notice.
    loud = hidden.clone()
    loud[1] = 10 * torch.sign(stack.layers[0].policy.predictor.weight)
    both, memories = run(stack, loud, 16)
    alone, own = run(stack, loud[:1], 16)
    torch.testing.assert_close(both[:1], alone)
    assert memories[-1].sizes[0] > own[-1].sizes[0]
    assert memories[-1].layers[0].occupied[0].sum() == own[-1].layers[0].occupied[0].sum()


@KINDS
@torch.no_grad()
def test_storage_is_that_of_the_longest_row(kind):
    stack = make(kind)
    memory = None
    for part in text().split(16, dim=1):
        out = stack(part, memory)
        memory = out.memory
        for layer in memory.layers:
            alive = layer.occupied.sum(dim=1).max().item()
            assert layer.age.size(1) == alive
    assert max(memory.sizes) <= SPAN + RAMP


@torch.no_grad()
def test_memory_size_is_what_a_query_sees():
    stack = make("fixed")
    sizes = stack(text(length=60)).reports[0].memory_size
    assert sizes[0].tolist() == [min(t, SPAN) for t in range(60)]


def test_memory_takes_no_gradient_and_nothing_is_changed_in_place():
    stack, hidden = make(), text()
    first = stack(hidden[:, :20])
    before = {name: tensor.clone() for name, tensor in first.memory.state_dict().items()}
    stack(hidden[:, 20:40], first.memory).hidden.sum().backward()
    for name, tensor in first.memory.state_dict().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, before[name])


@torch.no_grad()
def test_padding_is_neither_seen_nor_remembered():
    stack, hidden = make(), text(rows=2)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[1, 20:] = True
    padded = stack(hidden[:, :30], padding=padding)
    short = stack(hidden[1:, :20])
    torch.testing.assert_close(padded.hidden[1:, :20], short.hidden)
    torch.testing.assert_close(padded.reports[0].penalty[1:], short.reports[0].penalty)
    assert padded.memory.layers[0].occupied[1].sum() <= 20


def test_training_draws_one_shortening_for_all_layers_and_scoring_none():
    stack, hidden = make("shortened"), text()
    torch.manual_seed(3)
    share = torch.rand(()).item()
    torch.manual_seed(3)
    drawn = stack(hidden).hidden
    torch.testing.assert_close(drawn, stack(hidden, shortening=share).hidden)
    torch.testing.assert_close(stack.eval()(hidden).hidden, make("expire")(hidden).hidden)


def test_dropout_only_in_training():
    stack, hidden = make(dropout=0.3, attention_dropout=0.3, activation_dropout=0.3), text()
    assert not torch.equal(stack(hidden).hidden, stack(hidden).hidden)
    assert torch.equal(stack.eval()(hidden).hidden, stack(hidden).hidden)


def test_low_precision_stays_as_close_as_its_own_rounding():
    exact = make()(text()).hidden
    rounded = make().to(torch.bfloat16)(text().to(torch.bfloat16)).hidden
    assert torch.isfinite(rounded).all()
    assert (rounded.double() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_heads": 3}, "3 heads and width 16"),
        ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers"),
        ({"position_range": 0}, "position_range"),
        ({"ffn_dim": -1}, "ffn_dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_dropout": -0.1}, "attention_dropout"),
    ],
)
def test_bad_arguments(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_blocks_and_memories_that_do_not_fit():
    stack, hidden = make(), text()
    memory = stack(hidden).memory
    for call, words in [
        (lambda: stack(hidden[:, :0]), "at least one token"),
        (lambda: stack(hidden[..., :5]), r"\[B, T, 16\]"),
        (lambda: stack(hidden[:2], memory), "3 rows, the block 2"),
        (lambda: stack(hidden, Memory(memory.layers[:2])), "2 layers, the model 3"),
        (lambda: LayerMemory(memory.layers[0].hidden, memory.layers[0].age[:, 1:]), "age"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
