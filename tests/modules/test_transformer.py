"""Properties that every stack has, whatever its memory policy."""

import numpy as np
import pytest
import reader
import torch
from small_stacks import (
    COMPRESSED,
    KINDS,
    LENGTH,
    MODES,
    NORMS,
    RAMP,
    RATE,
    SHORT,
    SPAN,
    K,
    make,
    text,
)  # fmt: skip

from fairseq_expire.modules import Memory
from fairseq_expire.modules.growable_buffer import GrowableBuffer


def run(stack, hidden, block):
    """Reads a text in blocks; returns the outputs of the whole text and the memory after each block."""
    memory, outputs, memories = None, [], []
    for part in hidden.split(block, dim=1):
        out = stack(part, memory)
        memory = out.memory
        outputs.append(out.hidden)
        memories.append(memory)
    return torch.cat(outputs, dim=1), memories


def alive(memory, stack):
    """[layer][row]: how many memories later queries can see; expired ones may still have a slot."""
    counts = []
    for stored, layer in zip(memory.layers, stack.layers):
        seen, policy = stored.occupied, layer.policy
        if stored.spans is not None:
            spans = stored.spans.amax(dim=-1)
            if stored.min_distance is not None:
                spans = spans.masked_fill(stored.min_distance > 1, policy.max_age)
            seen = (stored.age < spans + policy.ramp) & (stored.age <= (policy.max_distance or 10 * LENGTH))
        counts.append(seen.sum(dim=1).tolist())
    return counts


@KINDS
@NORMS
@MODES
@torch.no_grad()
def test_equals_a_reader_that_keeps_everything(kind, pre_norm, training):
    stack, hidden = make(kind, pre_norm).train(training), text()
    state = {name: tensor.numpy() for name, tensor in stack.state_dict().items()}
    name, _, pooling = kind.partition("-")
    mask = {
        "expire": reader.expire_span_mask(max_span=SPAN, ramp=RAMP),
        "fixed": reader.fixed_span_mask(max_span=SPAN),
        "adaptive": reader.adaptive_span_mask(max_span=SPAN, ramp=RAMP),
        "compressive": reader.fixed_span_mask(max_span=SHORT),
    }[name]
    compressed = None
    if pooling:
        compressed = reader.compressed(max_span=SHORT, size=COMPRESSED, rate=RATE, pooling=pooling)
    actual, _ = run(stack, hidden, 7)
    for row in range(len(hidden)):
        expected = reader.read(
            state, hidden[row].numpy(), heads=K, pre_norm=pre_norm, mask_of=mask, compressed_of=compressed
        )
        np.testing.assert_allclose(actual[row], expected, atol=1e-10)


@KINDS
@NORMS
@pytest.mark.parametrize("block", [1, 7, 64])
@MODES
@torch.no_grad()
def test_block_length_changes_nothing(kind, pre_norm, block, training):
    stack, hidden = make(kind, pre_norm).train(training), text()
    whole, _ = run(stack, hidden, LENGTH)
    torch.testing.assert_close(run(stack, hidden, block)[0], whole)


@KINDS
@pytest.mark.parametrize("block", [1, 3, 40])
@pytest.mark.parametrize("limit", [5, SHORT + 1, SHORT + RATE, 35])
@torch.no_grad()
def test_block_length_changes_nothing_under_a_limit(kind, limit, block):
    """Limits below L, among the compressed memories, and beyond these."""
    stack, hidden = make(kind).eval(), text(rows=1, length=90)
    for layer in stack.layers:
        layer.policy.span_limit = limit
    whole, _ = run(stack, hidden, LENGTH)
    torch.testing.assert_close(run(stack, hidden, block)[0], whole)
    with torch.enable_grad():
        torch.testing.assert_close(run(stack, hidden, block)[0], whole)
    assert not torch.allclose(run(make(kind).eval(), hidden, LENGTH)[0], whole)


@KINDS
@MODES
@pytest.mark.parametrize("gap", [1, 4, 50])
@torch.no_grad()
def test_block_length_changes_nothing_after_a_gap(kind, training, gap):
    """Skipped text advances the ages of a memory."""
    stack, hidden = make(kind).train(training), text(rows=2)
    memory = run(stack, hidden[:, :30], 30)[1][-1].advance(gap)
    whole = stack(hidden[:, 30:], memory).hidden
    for block in (1, 7):
        after, outputs = memory, []
        for part in hidden[:, 30:].split(block, dim=1):
            out = stack(part, after)
            after = out.memory
            outputs.append(out.hidden)
        torch.testing.assert_close(torch.cat(outputs, dim=1), whole)


@MODES
@torch.no_grad()
def test_deletion_changes_nothing(training):
    kept, memories = run(make("keep").train(training), text(), 16)
    deleted, fewer = run(make("expire").train(training), text(), 16)
    torch.testing.assert_close(deleted, kept)
    assert memories[-1].sizes[0] == LENGTH > max(fewer[-1].sizes)


@KINDS
@MODES
@torch.no_grad()
def test_the_future_changes_nothing(kind, training):
    stack, hidden = make(kind).train(training), text()
    changed = hidden.clone()
    changed[:, 50:] += 1
    assert torch.equal(run(stack, hidden, 7)[0][:, :49], run(stack, changed, 7)[0][:, :49])


@MODES
@torch.no_grad()
def test_another_row_changes_nothing_however_long_its_memory(training):
    stack = make().train(training)
    hidden = text(rows=2)
    # All states of this row stay long; the other row must not notice.
    loud = hidden.clone()
    loud[1] = 10 * torch.sign(stack.layers[0].policy.predictor.weight)
    both, memories = run(stack, loud, 16)
    alone, memories_alone = run(stack, loud[:1], 16)
    torch.testing.assert_close(both[:1], alone)
    assert alive(memories[-1], stack)[0][1] > alive(memories_alone[-1], stack)[0][0]
    assert alive(memories[-1], stack)[0][0] == alive(memories_alone[-1], stack)[0][0]


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
            assert layer.slots == alive
    assert max(memory.sizes) <= SPAN + RAMP


@KINDS
@pytest.mark.parametrize("block", [1, 7, 100])
@torch.no_grad()
def test_storage_of_keys_and_values_is_bounded(kind, block):
    """By the memories of the longest row that are alive, rounded up to 64, and free room for a block."""
    stack = make(kind, span=150).eval()
    memory = None
    for part in text(length=220).split(block, dim=1):
        memory = stack(part, memory).memory
        for layer, counts in zip(memory.layers, alive(memory, stack)):
            bound = -(-max(counts) // 64) * 64 + part.size(1)
            assert layer.slots + part.size(1) <= layer.buffer.capacity <= bound


@torch.no_grad()
def test_token_by_token_reading_seldom_copies_the_memory(monkeypatch):
    appended, append = [], GrowableBuffer.append
    monkeypatch.setattr(GrowableBuffer, "append", lambda *args: appended.append(append(*args)) or appended[-1])
    stack = make().eval()
    memory, moved = None, 0
    for part in text(rows=1, length=300).split(1, dim=1):
        before, memory = memory, stack(part, memory).memory
        if before is not None:
            moved += memory.layers[0].keys.data_ptr() != before.layers[0].keys.data_ptr()
    assert moved <= 300 / 32
    assert len(appended) == 2 * 299 and all(grown is not None for grown in appended)


@torch.no_grad()
def test_two_texts_continue_one_memory():
    """A memory is a value: reading on from it does not change it."""
    stack, hidden = make().eval(), text(length=60)
    memory = stack(hidden[:, :20]).memory
    texts = [hidden[:, 20:23], hidden[:, 40:43]]
    once = [stack(part, memory) for part in texts]
    for part, out in zip(texts, once):
        again = stack(part, memory)
        assert torch.equal(again.hidden, out.hidden)
        follow = hidden[:, 50:55]
        torch.testing.assert_close(stack(follow, again.memory).hidden, stack(follow, out.memory).hidden)


@KINDS
@NORMS
@torch.no_grad()
def test_scoring_continues_a_memory_of_training(kind, pre_norm):
    stack, hidden = make(kind, pre_norm), text(length=60)
    memory = stack(hidden[:, :40]).memory
    expected = stack(hidden[:, 40:], memory)
    torch.testing.assert_close(stack.eval()(hidden[:, 40:], memory).hidden, expected.hidden)


def test_training_does_not_continue_keys_and_values():
    stack, hidden = make().eval(), text(length=40)
    with torch.no_grad():
        memory = stack(hidden[:, :20]).memory
    for attempt in (stack, stack.train()):
        with pytest.raises(ValueError, match=r"made while scoring.*start from None"):
            attempt(hidden[:, 20:], memory)


@torch.no_grad()
def test_a_memory_of_inference_mode_works_outside_of_it():
    stack, hidden = make().eval(), text(length=40)
    with torch.inference_mode():
        memory = stack(hidden[:, :20]).memory
    expected = stack(hidden[:, 20:], stack(hidden[:, :20]).memory)
    torch.testing.assert_close(stack(hidden[:, 20:], memory).hidden, expected.hidden)


@KINDS
@NORMS
def test_checkpointed_activations_give_the_same(kind, pre_norm):
    results = []
    for checkpointed in (False, True):
        stack, hidden = (
            make(kind, pre_norm, dropout=0.2, attention_dropout=0.2, checkpoint_activations=checkpointed),
            text(),
        )
        torch.manual_seed(4)
        memory = stack(hidden[:, :50]).memory
        out = stack(hidden[:, 50:80].requires_grad_(), memory)
        penalties = [report.penalty.sum() for report in out.reports if report.penalty is not None]
        (out.hidden.square().sum() + sum(penalties)).backward()
        results.append((out, {name: weight.grad for name, weight in stack.named_parameters()}))
    (plain, gradients), (again, others) = results
    assert torch.equal(again.hidden, plain.hidden)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(plain.memory.state_dict().values(), again.memory.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_nothing_of_the_size_of_queries_times_memories_is_stored_for_backward():
    stack, hidden = make("fixed", span=4000, position_range=64), text(rows=2, length=1200)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x) or x, lambda x: x):
        memory = stack(hidden[:, :1000]).memory
        stored.clear()
        stack(hidden[:, 1000:], memory)
    assert memory.sizes[0] == 1000
    assert max(x.numel() for x in stored) < 2 * 200 * 1200 / 4


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


@KINDS
@MODES
@torch.no_grad()
def test_padding_is_neither_seen_nor_remembered(kind, training):
    stack, hidden = make(kind).train(training), text(rows=2)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[1, 20:] = True
    padded = stack(hidden[:, :30], padding=padding)
    short = stack(hidden[1:, :20])
    torch.testing.assert_close(padded.hidden[1:, :20], short.hidden)
    if short.reports[0].penalty is not None:
        torch.testing.assert_close(padded.reports[0].penalty[1:], short.reports[0].penalty)
    # 20 tokens, compressed memories included.
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


@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights-too", "autocast"])
@pytest.mark.parametrize("kind", ["expire", "adaptive", "compressive-max", "compressive-mean"])
def test_half_precision_keeps_spans_exact_and_gradients_finite(kind, autocast, dtype, training):
    exact = make(kind, span=40_000).train(training)
    stack = make(kind, span=40_000).float().train(training)
    if not autocast:
        stack.to(dtype)
    memory, exact_memory = None, None
    for part in text(length=60).split(20, dim=1):
        part = part.to(next(stack.parameters()).dtype)
        with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=autocast):
            out = stack(part, memory)
        with torch.set_grad_enabled(training):
            exact_out = exact(part.double(), exact_memory)
        memory, exact_memory = out.memory, exact_out.memory
        assert torch.isfinite(out.hidden).all()
        assert (out.hidden.double() - exact_out.hidden).abs().mean() < 0.1 * exact_out.hidden.abs().mean()
        assert all(report.span.dtype == torch.float32 for report in out.reports)
        if kind == "expire":
            # Computed in half precision, most spans of the first layer would be equal.
            assert len(out.reports[0].span.unique()) > 0.9 * out.reports[0].span.numel()
    if training:
        out.hidden.float().square().mean().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in stack.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_memory_of_full_precision_works_in_half_precision(dtype):
    stack = make().float().eval()
    first, second = text(length=40).float().split(20, dim=1)
    with torch.no_grad():
        memory = stack(first).memory
        with torch.autocast("cpu", dtype):
            out = stack(second, memory)
            stack(second, out.memory)
        expected = stack(second, memory).hidden
    assert (out.hidden - expected).abs().mean() < 0.1 * expected.abs().mean()


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
        (lambda: stack(hidden, Memory(memory.layers[:1])), "1 layers, the model 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
