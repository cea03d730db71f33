"""The reference against the loops, values and every gradient; and what it does where the equation divides by zero."""

import pytest
import torch
from attention_problems import CASES, LEAVES, ODD, Size, by_reference, check_reference, empty_row, problem


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loops(case):
    check_reference(CASES[case])


@pytest.mark.parametrize("case", ["a-span-for-each-head", "strided-2-positions-3"])
def test_gradcheck(case):
    inputs = CASES[case]
    inputs = {**inputs, **{name: inputs[name].detach()[:1].clone().requires_grad_() for name in LEAVES[:4]}}
    inputs.update({name: inputs[name][:1] for name in ("age", "min_distance") if name in inputs})
    # Away from the kinks of the mask, which are on whole steps in one case.
    inputs["span"] = (inputs["span"].detach() + 0.3).requires_grad_()

    def attention(*leaves):
        return by_reference({**inputs, **dict(zip(LEAVES, leaves))})

    assert torch.autograd.gradcheck(attention, tuple(inputs[name] for name in LEAVES))


def test_second_derivatives():
    """Only the reference has them."""
    inputs = {**problem(Size(1, 1, 1, 2, 2, 1, 2, 4))}

    def attention(*leaves):
        return by_reference({**inputs, **dict(zip(LEAVES, leaves))})

    assert torch.autograd.gradgradcheck(attention, tuple(inputs[name] for name in LEAVES))


def test_only_the_ramp_has_a_gradient():
    inputs = problem(Size(1, 1, 1, 1, 6, 2, 2, 3))
    age = torch.tensor([[6, 5, 4, 3, 2, 1, 0]])
    # Steps remaining: gone; just gone; on the ramp, twice; its end, seen in full; far from it; the query itself.
    remaining = torch.tensor([-9.0, -3.0, -2.0, -0.5, 0.0, 50.0, 50.0])
    span = (remaining + age).double().unsqueeze(1).requires_grad_()
    (gradient,) = torch.autograd.grad(by_reference({**inputs, "age": age, "span": span}).sum(), span)
    assert (gradient != 0).squeeze().tolist() == [False, False, True, True, False, False, False]


def test_dropout_drops_that_share_and_keeps_the_mean():
    inputs = {
        name: x.detach() if torch.is_tensor(x) else x for name, x in problem(Size(1, 1, 1, 1, 4000, 2, 1, 3)).items()
    }
    inputs.update(query=torch.zeros(1, 1, 1, 2), key=torch.zeros(1, 1, 4001, 2), value=torch.ones(1, 1, 4001, 2))
    inputs.update(position=torch.zeros(1, 2), span=torch.full((1, 1, 4001), 1e6))
    torch.manual_seed(0)
    first, second = by_reference(inputs, dropout=0.25), by_reference(inputs, dropout=0.25)
    assert not torch.equal(first, second)
    for out in (first, second):
        assert abs(out[0, 0, 0, 0].item() - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_query_that_sees_nothing_gets_zeros_and_no_nan(dtype):
    inputs = empty_row(problem(ODD))
    for name in LEAVES:
        kind = torch.promote_types(dtype, torch.float32) if name == "span" else dtype
        inputs[name] = inputs[name].detach().to(kind).requires_grad_()
    out = by_reference(inputs)
    out.float().sum().backward()
    assert out.dtype == dtype and torch.equal(out[0], torch.zeros_like(out[0]))
    for name in LEAVES:
        assert torch.isfinite(inputs[name].grad).all(), name


def test_a_span_that_is_nan_shows():
    inputs = problem(Size(2, 2, 1, 4, 5, 4, 5, 3))
    with torch.no_grad():
        inputs["span"][0, :, 2] = float("nan")
    out = by_reference(inputs)
    assert out[0].isnan().all() and out[1].isfinite().all()
