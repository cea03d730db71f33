"""The fast path against the reference: values, every gradient, and what a query that sees nothing gets."""

import pytest
import torch
from attention_problems import (
    EMPTY_AGE,
    LEAVES,
    SIZES,
    Size,
    by_reference,
    check,
    fast,
    problem,
    small_tiles,
    strided_problem,
    without_fused_kernel,
)

from fairseq_expire.modules.attention import fused, tiled, tiles
from fairseq_expire.modules.attention.memory_order import MemoryOrder

MIN_QUERIES = tiled.MIN_QUERIES_TO_SORT
KERNELS = pytest.mark.parametrize("kernel", [True, False], ids=["fused", "without-kernel"])


@pytest.fixture(autouse=True)
def memories_sorted(monkeypatch):
    """Sorts memories even for a few queries, unless a test says otherwise."""
    monkeypatch.setattr(tiled, "MIN_QUERIES_TO_SORT", 1)


# All at once; a few queries of all rows; three queries of one row, with cache lines of four floats.
@pytest.mark.parametrize(
    "cut", [(1 << 20, 128), (400, 4), (1, 3, 4)], ids=lambda c: f"tiles-of-{c[0]}-scores-{c[1]}-queries"
)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("way", ["fused", "without-kernel", "unsorted"])
def test_values_and_gradients_equal_the_reference(size, cut, way, monkeypatch):
    small_tiles(monkeypatch, *cut)
    if way == "without-kernel":
        without_fused_kernel(monkeypatch)
    if way == "unsorted":
        monkeypatch.setattr(tiled, "MIN_QUERIES_TO_SORT", size.T + 1)
    check(problem(size))


@pytest.mark.parametrize("line", [1, 16])
@pytest.mark.parametrize("cut", [(1 << 20, 128), (1, 2)], ids=["rows-together", "a-row-alone"])
@pytest.mark.parametrize("spans", [1, 2])
def test_rows_with_more_fully_visible_memories_than_there_is_place_for_in_front(spans, cut, line, monkeypatch):
    """The row with the most fading memories limits how many of each row the kernel takes; tiles take the others."""
    small_tiles(monkeypatch, *cut, line)
    inputs = problem(Size(4, 2, spans, 4, 60, 3, 2, 5))
    with torch.no_grad():
        inputs["age"][:, :60] = torch.arange(60, 0, -1)
        # All; the old ones alone; none; some, with expired ones between them.
        for row, full in enumerate([range(60), range(25), (), range(0, 50, 2)]):
            inputs["span"][row, :, :60] = -1e4
            inputs["span"][row, :, list(full)] = 1e4
        inputs["span"][2, :, 20:60] = inputs["age"][2, 20:60] - torch.arange(40) % 4
    taken, kernel = [], tiled.attend_fused
    monkeypatch.setattr(
        tiled, "attend_fused", lambda *args, counts: taken.append(counts) or kernel(*args, counts=counts)
    )
    check(inputs)
    places = 60 - -(-40 // line) * line
    assert taken == [(places, places, 0, places)]


def test_memories_are_sorted_only_where_it_pays(monkeypatch):
    monkeypatch.setattr(tiled, "MIN_QUERIES_TO_SORT", MIN_QUERIES)
    made, of = [], MemoryOrder.of
    monkeypatch.setattr(MemoryOrder, "of", lambda *args, **options: made.append(args) or of(*args, **options))
    few, many = (problem(Size(2, 2, 1, block, 40, 3, 4, 5)) for block in (MIN_QUERIES - 1, MIN_QUERIES))
    check(few)
    assert not made
    fast(many)
    assert len(made) == 1


@pytest.mark.parametrize("min_queries", [1, 50], ids=["sorted", "unsorted"])
def test_a_span_that_is_nan_shows(min_queries, monkeypatch):
    monkeypatch.setattr(tiled, "MIN_QUERIES_TO_SORT", min_queries)
    inputs = problem(Size(3, 2, 1, 40, 30, 4, 5, 3))
    with torch.no_grad():
        inputs["span"][0, :, 2] = inputs["span"][1, :, 29] = float("nan")
    out = fast(inputs)
    assert out[:2].isnan().all() and out[2].isfinite().all()


@KERNELS
@pytest.mark.parametrize("size", [Size(2, 3, 3, 5, 17, 3, 4, 3), Size(2, 2, 1, 9, 25, 4, 40, 6)], ids=str)
@pytest.mark.parametrize("max_distance", [3, 20])
def test_keys_further_back_than_a_limit_are_unseen(size, max_distance, kernel, monkeypatch):
    small_tiles(monkeypatch, 400, 4)
    if not kernel:
        without_fused_kernel(monkeypatch)
    inputs = problem(size)
    unlimited = by_reference(inputs)
    check({**inputs, "max_distance": max_distance})
    assert not torch.allclose(fast(inputs, max_distance=max_distance), unlimited)


@KERNELS
@pytest.mark.parametrize("position_range", [3, 8, 40])
@pytest.mark.parametrize("stride", [2, 3])
def test_keys_that_stand_for_several_states(stride, position_range, kernel, monkeypatch):
    small_tiles(monkeypatch, 400, 4)
    if not kernel:
        without_fused_kernel(monkeypatch)
    check(strided_problem(stride, position_range))


def test_only_old_memories_are_visible():
    """No key near the query, and far ones of very different weight."""
    inputs = problem(Size(2, 2, 1, 3, 40, 4, 2, 5))
    with torch.no_grad():
        inputs["span"][..., -6:] = -1e4
        inputs["span"][..., :-6] = 1e4
        inputs["key"][..., 3, :] *= 300
    torch.testing.assert_close(fast(inputs), by_reference(inputs))


def test_tensors_whose_vectors_are_not_contiguous():
    inputs = problem(Size(2, 2, 1, 5, 30, 4, 2, 5))
    expected = fast(inputs)
    for name in ("query", "key", "value"):
        inputs[name] = inputs[name].detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(fast(inputs), expected)


def test_a_kernel_that_does_not_work_is_not_used(monkeypatch):
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


def test_why_there_is_no_kernel_is_logged_once(monkeypatch, caplog):
    without_fused_kernel(monkeypatch)
    fused._log_once.cache_clear()
    caplog.set_level("INFO")
    inputs = problem(Size(1, 2, 1, 3, 9, 4, 2, 5))
    for _ in range(2):
        fast(inputs)
    assert [record.message for record in caplog.records] == [
        f"attention is computed without PyTorch's fused kernel: PyTorch {torch.__version__} has none that works here"
    ]
    fused._log_once.cache_clear()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck(dropout, monkeypatch):
    small_tiles(monkeypatch, 60, 2)
    inputs = problem(Size(2, 2, 1, 3, 4, 2, 3, 4))

    def attention(query, key, value, span, position):
        # The same probabilities are dropped every time.
        torch.manual_seed(5)
        moved = {"query": query, "key": key, "value": value, "span": span, "position": position}
        return fast({**inputs, **moved}, dropout=dropout)

    assert torch.autograd.gradcheck(attention, tuple(inputs[name] for name in LEAVES))


def test_dropout_drops_that_share_and_keeps_the_mean():
    inputs = {
        name: x.detach() if torch.is_tensor(x) else x for name, x in problem(Size(1, 1, 1, 1, 4000, 2, 1, 3)).items()
    }
    # Every key weighs the same, and its value tells whether it was kept.
    inputs.update(key=torch.zeros(1, 1, 4001, 2), query=torch.zeros(1, 1, 1, 2), position=torch.zeros(1, 2))
    inputs.update(value=torch.ones(1, 1, 4001, 2), span=torch.full((1, 1, 4001), 1e6))
    torch.manual_seed(0)
    first, second = fast(inputs, dropout=0.25), fast(inputs, dropout=0.25)
    assert not torch.equal(first, second)
    for out in (first, second):
        assert abs(out[0, 0, 0, 0].item() - 1) < 0.05


@pytest.mark.parametrize("rows_together, rest", [(False, float("nan")), (True, 1e3)])
def test_slots_that_are_not_in_use_do_not_count(monkeypatch, rows_together, rest):
    """A row in a tile of its own reads only a few of them, to fill a cache line; other slots may hold NaN."""
    small_tiles(monkeypatch, 1 << 20 if rows_together else 100, 4)
    slots = 50
    inputs = problem(Size(3, 2, 1, 5, slots, 3, 4, 3))
    counts = (2, 20, 0)
    blank = dict(inputs)
    with torch.no_grad():
        for row, count in enumerate(counts):
            inputs["age"][row, : slots - count] = EMPTY_AGE
        for name in ("key", "value"):
            blank[name] = inputs[name].clone()
            for row, count in enumerate(counts):
                blank[name][row, :, : slots - count] = 1e3
                blank[name][row, :, : slots - tiles.aligned(count)] = rest
        torch.testing.assert_close(fast(blank, counts=counts), by_reference(inputs))


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
def test_fused_gradients_in_low_precision_are_as_close_as_those_without_kernel(dtype, sharpness, monkeypatch):
    exact = problem(Size(2, 2, 1, 16, 40, 8, 4, 9))
    exact["query"] = exact["query"] * sharpness
    low = {name: exact[name].detach().to(dtype).requires_grad_() for name in ("query", "key", "value", "position")}
    low["span"] = exact["span"].detach().float().requires_grad_()
    rounded = {name: low[name].detach().double().requires_grad_() for name in LEAVES}
    weights = torch.randn(2, 2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradients(inputs):
        return torch.autograd.grad((fast(inputs).double() * weights).sum(), [inputs[name] for name in LEAVES])

    small_tiles(monkeypatch, 1 << 20, 128)
    expected = gradients({**exact, **rounded})
    calls, kernel = [], fused._backward
    monkeypatch.setattr(fused, "_backward", lambda *args, **options: calls.append(args) or kernel(*args, **options))
    by_kernel = gradients({**exact, **low})
    assert len(calls) == 2
    without_fused_kernel(monkeypatch)
    for name, right, ours, without in zip(LEAVES, expected, by_kernel, gradients({**exact, **low})):
        error, baseline = ((x.double() - right).abs().mean() for x in (ours, without))
        assert error < 2 * baseline, name


@pytest.mark.parametrize("counts", [None, (900, 30, 0)])
def test_single_precision_at_real_sizes(counts):
    """More queries than a tile has, more memories than a cache line has floats; and rows with fewer memories."""
    double = problem(Size(3, 2, 1, 200, 900, 64, 70, 40))
    # Numbers that single precision has, too: the steps remaining are a small difference of large ones.
    double["span"] = (double["span"].detach() * 64).round().div(64).requires_grad_()
    if counts is not None:
        for row, count in enumerate(counts):
            double["age"][row, : 900 - count] = EMPTY_AGE
    single = {name: double[name].detach().float().requires_grad_() for name in LEAVES}
    weights = torch.randn(3, 2, 200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = by_reference(double)
    expected = torch.autograd.grad((exact * weights).sum(), [double[name] for name in LEAVES])
    out = fast({**double, **single}, counts=counts)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-4)
    grads = torch.autograd.grad((out * weights.float()).sum(), [single[name] for name in LEAVES])
    for name, right, ours in zip(LEAVES, expected, grads):
        scale = right.abs().max().item()
        torch.testing.assert_close(
            ours.double(), right, atol=1e-5 * scale, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        if counts is not None and name in ("key", "value", "span"):
            assert not ours[1, :, :870].any() and not ours[2, :, :900].any()


def test_tiles_cover_every_query_of_every_row_once():
    counts = [900, 3, 2500, 40, 40, 41, 0]
    covered = torch.zeros(len(counts), 300, dtype=torch.int64)
    # Each query sees one less than the one before.
    shrinking = lambda row, start: max(0, counts[row] - start)  # noqa: E731
    for tile in tiles.tiles(len(counts), shrinking, block=300, heads=8, max_scores=1 << 20, max_queries=128):
        covered[tile.rows, tile.start : tile.stop] += 1
        assert tile.memory == max(0, max(counts[tile.rows]) - tile.start)
        rows = tile.rows.stop - tile.rows.start
        scores = rows * 8 * (tile.stop - tile.start) * (tile.memory + 300)
        assert scores <= 1 << 20 or tile.stop - tile.start == tiles.MIN_QUERIES
    assert (covered == 1).all()
