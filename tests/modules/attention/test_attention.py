"""The fast attention against the loops: values, every gradient, and what a query that sees nothing gets."""

import re
from typing import NamedTuple

import pytest
import torch
from attention_by_loops import LEAVES, check, fast, slow, small_pieces, without_fused_kernel

from fairseq_expire.modules.attention import (
    fused,
)
from fairseq_expire.modules.attention import (
    inputs as attention_inputs,
)
from fairseq_expire.modules.attention import (
    memory_order as arrangement,
)
from fairseq_expire.modules.attention import (
    tiled as attention,
)
from fairseq_expire.modules.attention import (
    tiles as pieces,
)


class Size(NamedTuple):
    """B rows, K heads, H heads of a span, T queries, M memories, d width of a head, P reach of positions, R ramp."""

    B: int
    K: int
    H: int
    T: int
    M: int
    d: int
    P: int
    R: int

    def __str__(self):
        return "-".join(f"{name}{value}" for name, value in self._asdict().items())


# One query, no memory, no position in reach, a hard edge, positions beyond everything, a span a head, odd sizes.
SIZES = [
    Size(1, 1, 1, 1, 0, 1, 1, 1),
    Size(2, 3, 1, 5, 7, 3, 4, 3),
    Size(1, 2, 2, 4, 11, 2, 1, 6),
    Size(3, 1, 1, 7, 2, 5, 64, 2),
    Size(2, 2, 2, 1, 9, 4, 3, 5),
    Size(2, 2, 1, 9, 5, 4, 6, 1),
    Size(3, 2, 1, 17, 23, 3, 8, 9),
]
FEWEST = attention_inputs.FEWEST_ARRANGED
KERNELS = pytest.mark.parametrize("kernel", [True, False], ids=["fused", "step-by-step"])


@pytest.fixture(autouse=True)
def memories_in_order(monkeypatch):
    """Even for a few queries, unless a test says otherwise."""
    monkeypatch.setattr(attention_inputs, "FEWEST_ARRANGED", 1)


def problem(size, seed=0):
    """Random inputs with holes in the memory, as deletion leaves them, and spans of which many end in this block."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    slots = size.M + size.T
    age = [
        torch.randperm(3 * size.M, generator=generator)[: size.M].sort(descending=True).values + 1
        for _ in range(size.B)
    ]
    age = torch.cat([torch.stack(age), -torch.arange(size.T).expand(size.B, size.T)], dim=1)
    span = torch.rand(size.B, size.H, slots, dtype=torch.float64, generator=generator) * (size.T + 2 * size.R)
    return dict(
        query=normal(size.B, size.K, size.T, size.d),
        key=normal(size.B, size.K, slots, size.d),
        value=normal(size.B, size.K, slots, size.d),
        age=age,
        span=(span - size.R + age.unsqueeze(1).clamp(min=0)).requires_grad_(),
        ramp=size.R,
        position=normal(size.P, size.d),
    )


# All at once; a few queries of all rows; three queries of one row, with memories in fours.
@pytest.mark.parametrize(
    "cut", [(1 << 20, 128), (400, 4), (1, 3, 4)], ids=lambda c: f"pieces-of-{c[0]}-scores-{c[1]}-queries"
)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("way", ["fused", "step-by-step", "not-in-order"])
def test_values_and_gradients_equal_the_loops(size, cut, way, monkeypatch):
    small_pieces(monkeypatch, *cut)
    if way == "step-by-step":
        without_fused_kernel(monkeypatch)
    if way == "not-in-order":
        monkeypatch.setattr(attention_inputs, "FEWEST_ARRANGED", size.T + 1)
    check(problem(size))


@pytest.mark.parametrize("line", [1, 16])
@pytest.mark.parametrize("cut", [(1 << 20, 128), (1, 2)], ids=["rows-together", "a-row-alone"])
@pytest.mark.parametrize("spans", [1, 2])
def test_rows_with_more_steady_memories_than_there_is_room_for_in_front(spans, cut, line, monkeypatch):
    """The row with the most that fades says how many the kernel takes of each; the others are computed with what fades."""
    small_pieces(monkeypatch, *cut, line)
    inputs = problem(Size(4, 2, spans, 4, 60, 3, 2, 5))
    with torch.no_grad():
        inputs["age"][:, :60] = torch.arange(60, 0, -1)
        # All; the old ones alone; none; some, with others between them that are gone.
        for row, steady in enumerate([range(60), range(25), (), range(0, 50, 2)]):
            inputs["span"][row, :, :60] = -1e4
            inputs["span"][row, :, list(steady)] = 1e4
        inputs["span"][2, :, 20:60] = inputs["age"][2, 20:60] - torch.arange(40) % 4
    said, kernel = [], attention.attend_steady
    monkeypatch.setattr(
        attention, "attend_steady", lambda *args, counts: said.append(counts) or kernel(*args, counts=counts)
    )
    check(inputs)
    room = 60 - -(-40 // line) * line
    assert said == [(room, room, 0, room)]


def test_memories_are_put_in_order_only_where_it_pays(monkeypatch):
    monkeypatch.setattr(attention_inputs, "FEWEST_ARRANGED", FEWEST)
    made, of = [], arrangement.MemoryOrder.of
    monkeypatch.setattr(
        arrangement.MemoryOrder, "of", lambda *args, **options: made.append(args) or of(*args, **options)
    )
    few, many = (problem(Size(2, 2, 1, block, 40, 3, 4, 5)) for block in (FEWEST - 1, FEWEST))
    check(few)
    assert not made
    fast(many)
    assert len(made) == 1


@pytest.mark.parametrize("counts", [(3,), (3, 4, 5), (3, 8), (-1, 3)], ids=str)
def test_more_memories_than_there_are_is_refused(counts):
    with pytest.raises(
        ValueError, match=re.escape(f"expected a number from 0 to 7 for each of 2 rows, got {list(counts)}")
    ):
        fast(problem(Size(2, 3, 1, 5, 7, 3, 4, 3)), counts=counts)


@pytest.mark.parametrize("fewest", [1, 50], ids=["in-order", "not-in-order"])
def test_a_span_that_is_no_number_shows(fewest, monkeypatch):
    monkeypatch.setattr(attention_inputs, "FEWEST_ARRANGED", fewest)
    inputs = problem(Size(3, 2, 1, 40, 30, 4, 5, 3))
    with torch.no_grad():
        inputs["span"][0, :, 2] = inputs["span"][1, :, 29] = float("nan")
    out = fast(inputs)
    assert out[:2].isnan().all() and out[2].isfinite().all()


@KERNELS
@pytest.mark.parametrize("size", [Size(2, 3, 3, 5, 17, 3, 4, 3), Size(2, 2, 1, 9, 25, 4, 40, 6)], ids=str)
@pytest.mark.parametrize("longest", [3, 20])
def test_nothing_is_seen_from_further_than_the_longest_distance(size, longest, kernel, monkeypatch):
    small_pieces(monkeypatch, 400, 4)
    if not kernel:
        without_fused_kernel(monkeypatch)
    inputs = problem(size)
    free = slow(inputs)
    check({**inputs, "max_distance": longest})
    assert not torch.allclose(fast(inputs, max_distance=longest), free)


@KERNELS
@pytest.mark.parametrize("position_range", [3, 8, 40])
@pytest.mark.parametrize("rate", [2, 3])
def test_compressed_memories_are_seen_late_and_stand_behind_the_states(rate, position_range, kernel, monkeypatch):
    """Some not yet seen, one of this block's own tokens among them, and not in the order of time."""
    small_pieces(monkeypatch, 400, 4)
    if not kernel:
        without_fused_kernel(monkeypatch)
    after, block, states, compressed = 6, 7, 6, 10
    inputs = problem(Size(2, 2, 1, block, states + compressed, 3, position_range, 2))
    begins = after + block - rate * torch.arange(compressed) + 3
    age = torch.cat([torch.arange(states, 0, -1), begins, -torch.arange(block)]).expand(2, -1)
    slots = torch.zeros_like(age, dtype=torch.bool)
    slots[:, states : states + compressed] = True
    assert (begins <= 0).any() and (begins + block - 1 <= after).any()
    with torch.no_grad():
        # The states are gone when the compressed memories come.
        inputs["span"].copy_(torch.where(slots, 15.0, after - 1.0).unsqueeze(1))
    check({**inputs, "age": age, "min_distance": slots * after + 1, "stride": rate})


def test_memories_that_are_all_old_are_all_that_counts():
    """No candidate near the query, and far ones of very different weight."""
    inputs = problem(Size(2, 2, 1, 3, 40, 4, 2, 5))
    with torch.no_grad():
        inputs["span"][..., -6:] = -1e4
        inputs["span"][..., :-6] = 1e4
        inputs["key"][..., 3, :] *= 300
    torch.testing.assert_close(fast(inputs), slow(inputs))


def test_tensors_whose_vectors_are_not_in_one_piece():
    inputs = problem(Size(2, 2, 1, 5, 30, 4, 2, 5))
    expected = fast(inputs)
    for name in ("query", "key", "value"):
        inputs[name] = inputs[name].detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(fast(inputs), expected)


def test_a_kernel_that_does_not_serve_is_not_used(monkeypatch):
    def with_other_options(query, key, value, dropout, causal, *, scale):
        raise AssertionError

    def nan(query, *others, **options):
        return torch.full_like(query, float("nan")), query[..., 0]

    assert all(fused._kernel_works(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16))
    forward = fused._forward

    def of_the_largest(*tensors, **options):
        out, _ = forward(*tensors, **options)
        return out, torch.full_like(out[..., 0], 2.0)

    for kernel in (None, with_other_options, nan, of_the_largest):
        monkeypatch.setattr(fused, "_forward", kernel)
        fused._kernel_works.cache_clear()
        assert not fused._kernel_works(torch.float32)
    monkeypatch.undo()
    fused._kernel_works.cache_clear()


def test_what_cannot_be_fused_is_said_once(monkeypatch, caplog):
    without_fused_kernel(monkeypatch)
    fused._say.cache_clear()
    caplog.set_level("INFO")
    inputs = problem(Size(1, 2, 1, 3, 9, 4, 2, 5))
    for _ in range(2):
        fast(inputs)
    assert [record.message for record in caplog.records] == [
        f"attention is computed step by step, without a fused kernel: PyTorch {torch.__version__} has none that serves"
    ]
    fused._say.cache_clear()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck(dropout, monkeypatch):
    small_pieces(monkeypatch, 60, 2)
    inputs = problem(Size(2, 2, 1, 3, 4, 2, 3, 4))

    def attention(query, key, value, span, position):
        # The same probabilities are dropped every time.
        torch.manual_seed(5)
        moved = dict(query=query, key=key, value=value, span=span, position=position)
        return fast({**inputs, **moved}, dropout=dropout)

    assert torch.autograd.gradcheck(attention, tuple(inputs[name] for name in LEAVES))


def test_dropout_drops_that_share_and_keeps_the_mean():
    inputs = {
        name: x.detach() if torch.is_tensor(x) else x for name, x in problem(Size(1, 1, 1, 1, 4000, 2, 1, 3)).items()
    }
    # Every candidate weighs the same, and its value tells whether it was kept.
    inputs.update(key=torch.zeros(1, 1, 4001, 2), query=torch.zeros(1, 1, 1, 2), position=torch.zeros(1, 2))
    inputs.update(value=torch.ones(1, 1, 4001, 2), span=torch.full((1, 1, 4001), 1e6))
    torch.manual_seed(0)
    first, second = fast(inputs, dropout=0.25), fast(inputs, dropout=0.25)
    assert not torch.equal(first, second)
    for out in (first, second):
        assert abs(out[0, 0, 0, 0].item() - 1) < 0.05


@pytest.mark.parametrize("rows_together, rest", [(False, float("nan")), (True, 1e3)])
def test_slots_that_are_not_held_do_not_count(monkeypatch, rows_together, rest):
    """Finite ones where rows are worked on together; by itself a row does not even read them, but for some next to what it holds."""
    small_pieces(monkeypatch, 1 << 20 if rows_together else 100, 4)
    slots = 50
    inputs = problem(Size(3, 2, 1, 5, slots, 3, 4, 3))
    held = (2, 20, 0)
    blank = dict(inputs)
    with torch.no_grad():
        for row, count in enumerate(held):
            inputs["age"][row, : slots - count] = 1 << 40
        for name in ("key", "value"):
            blank[name] = inputs[name].clone()
            for row, count in enumerate(held):
                blank[name][row, :, : slots - count] = 1e3
                blank[name][row, :, : slots - pieces.aligned(count)] = rest
        torch.testing.assert_close(fast(blank, counts=held), slow(inputs))


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_query_that_sees_nothing_gets_zeros_and_no_nan(device, dtype):
    inputs = problem(Size(2, 2, 1, 4, 3, 4, 2, 3))
    with torch.no_grad():
        inputs["span"][1] = -1e4
    for name in LEAVES:
        kind = torch.promote_types(dtype, torch.float32) if name == "span" else dtype
        inputs[name] = inputs[name].detach().to(device, kind).requires_grad_()
    out = fast({**inputs, "age": inputs["age"].to(device)})
    out.float().sum().backward()
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    for name in LEAVES:
        assert inputs[name].grad.dtype == inputs[name].dtype
        assert torch.isfinite(inputs[name].grad).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_as_close_as_its_own_rounding(dtype):
    """Against the error that rounding the inputs makes."""
    inputs = {
        name: x.detach() if torch.is_tensor(x) else x for name, x in problem(Size(2, 2, 1, 16, 20, 8, 4, 9)).items()
    }
    exact = fast(inputs)
    low = {name: inputs[name].to(dtype) for name in ("query", "key", "value", "position")}
    ours = fast({**inputs, **low, "span": inputs["span"].float()})
    assert ours.dtype == dtype
    rounded = {name: x.double() for name, x in low.items()}
    baseline = (fast({**inputs, **rounded}) - exact).abs().max()
    assert (ours.double() - exact).abs().max() < 4 * baseline


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_gradients_in_low_precision_are_as_close_as_those_step_by_step(dtype, sharpness, monkeypatch):
    exact = problem(Size(2, 2, 1, 16, 40, 8, 4, 9))
    exact["query"] = exact["query"] * sharpness
    low = {name: exact[name].detach().to(dtype).requires_grad_() for name in ("query", "key", "value", "position")}
    low["span"] = exact["span"].detach().float().requires_grad_()
    rounded = {name: low[name].detach().double().requires_grad_() for name in LEAVES}
    weights = torch.randn(2, 2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradients(inputs):
        return torch.autograd.grad((fast(inputs).double() * weights).sum(), [inputs[name] for name in LEAVES])

    small_pieces(monkeypatch, 1 << 20, 128)
    expected = gradients({**exact, **rounded})
    calls, kernel = [], fused._backward
    monkeypatch.setattr(fused, "_backward", lambda *args, **options: calls.append(args) or kernel(*args, **options))
    by_kernel = gradients({**exact, **low})
    assert len(calls) == 2
    without_fused_kernel(monkeypatch)
    for name, right, ours, step_by_step in zip(LEAVES, expected, by_kernel, gradients({**exact, **low})):
        error, baseline = ((x.double() - right).abs().mean() for x in (ours, step_by_step))
        assert error < 2 * baseline, name


@pytest.mark.parametrize("held", [None, (900, 30, 0)])
def test_single_precision_at_real_sizes(held):
    """More queries than a piece, more memories than cache lines; and rows that hold less."""
    double = problem(Size(3, 2, 1, 200, 900, 64, 70, 40))
    # Numbers that single precision has, too: what is left of a span is a small difference of large ones.
    double["span"] = (double["span"].detach() * 64).round().div(64).requires_grad_()
    if held is not None:
        for row, count in enumerate(held):
            double["age"][row, : 900 - count] = 1 << 40
    single = {name: double[name].detach().float().requires_grad_() for name in LEAVES}
    weights = torch.randn(3, 2, 200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        without_fused_kernel(patch)
        exact = fast(double)
        expected = torch.autograd.grad((exact * weights).sum(), [double[name] for name in LEAVES])
    out = fast({**double, **single}, counts=held)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-4)
    grads = torch.autograd.grad((out * weights.float()).sum(), [single[name] for name in LEAVES])
    for name, right, ours in zip(LEAVES, expected, grads):
        scale = right.abs().max().item()
        torch.testing.assert_close(
            ours.double(), right, atol=1e-5 * scale, rtol=1e-4, msg=lambda text: f"{name}: {text}"
        )
        if held is not None and name in ("key", "value", "span"):
            assert not ours[1, :, :870].any() and not ours[2, :, :900].any()


def test_pieces_cover_every_query_of_every_row_once():
    held = [900, 3, 2500, 40, 40, 41, 0]
    seen = torch.zeros(len(held), 300, dtype=torch.int64)
    # Each query sees one less than the one before.
    shrinking = lambda row, first: max(0, held[row] - first)  # noqa: E731
    for piece in pieces.pieces(len(held), shrinking, block=300, heads=8, scores=1 << 20, queries=128):
        seen[piece.rows, piece.first : piece.last] += 1
        assert piece.memory == max(0, max(held[piece.rows]) - piece.first)
        rows = piece.rows.stop - piece.rows.start
        scores = rows * 8 * (piece.last - piece.first) * (piece.memory + 300)
        assert scores <= 1 << 20 or piece.last - piece.first == pieces.FEWEST_QUERIES
    assert (seen == 1).all()
