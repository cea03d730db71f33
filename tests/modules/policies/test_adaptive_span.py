"""Spans, mask, penalty and deletion of Adaptive-Span, against the paper."""

import pytest
import torch

from fairseq_expire.modules import AdaptiveSpan, LayerMemory, keep_bounds

L, R, K = 10, 4, 3


def policy(ratio=(0.0, 0.5, 1.0), **changes):
    made = AdaptiveSpan(**{"num_heads": K, "max_span": L, "ramp": R, **changes})
    made.ratio.data = torch.tensor(ratio)
    return made


def visibility_of(made, age, block):
    """Visibility of memories of these ages [S], the block's tokens last."""
    age = torch.tensor([age])
    states = torch.zeros(1, age.size(1), 5)
    return made.visibility(made.spans(states), LayerMemory.from_tensors(age=age, inputs=states), block=block)


def mask_of(visibility):
    """[K, T, S]."""
    return visibility.bias(0, visibility.block).exp2().squeeze(0)


def test_mask_is_that_of_the_paper():
    """m_z(x) = min(max((R + z - x) / R, 0), 1) for x = 0 ... L - 1 steps behind the youngest."""
    distances = list(range(2 * L, -1, -1))
    visibility = visibility_of(policy(), distances, block=1)
    for head, z in enumerate((0.0, 5.0, 10.0)):
        expected = [min(max((R + z - (n - 1)) / R, 0), 1) if 1 <= n <= L else 0 for n in distances]
        assert mask_of(visibility)[head, 0].tolist() == pytest.approx(expected)
    assert visibility.sizes().item() == L


@pytest.mark.parametrize("ratio, longest", [((0.0, 0.2, 0.5), 9), ((0.0, 0.8, 1.0), L), ((0.0, 0.0, 0.0), 4)])
def test_keeps_what_the_longest_head_can_see(ratio, longest):
    made, age = policy(ratio), list(range(2 * L, 0, -1))
    keep = made.retain(visibility_of(made, age, block=0))
    assert torch.tensor([age])[keep].tolist() == list(range(longest, 0, -1))


def test_sizes_count_what_any_head_sees():
    visibility = visibility_of(policy((0.0, 0.2, 0.5)), list(range(2 * L, -7, -1)), block=7)
    assert visibility.sizes().tolist() == [(mask_of(visibility) > 0).any(dim=0).sum(dim=-1).tolist()]


def test_penalty_is_the_mean_span_for_every_query():
    made = policy()
    states, age = torch.zeros(2, 6, 5), torch.tensor([[2, 1, 0, -1, -2, -3]] * 2)
    visibility = made.visibility(made.spans(states), LayerMemory.from_tensors(age=age, inputs=states), block=4)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
    penalty = made.penalty(visibility, padding=padding)
    assert penalty.tolist() == [4 * 5.0, 3 * 5.0]
    penalty.sum().backward()
    assert made.ratio.grad.tolist() == pytest.approx([7 * L / K] * K)


def test_parameters_may_leave_their_bounds_and_keep_bounds_brings_them_back():
    made = policy((-0.3, 0.5, 1.2))
    assert made.spans(torch.zeros(1, 5)).tolist() == [pytest.approx([-2.0, 6.0, 13.0])]
    keep_bounds(torch.nn.ModuleDict({"layer": made}))
    assert made.ratio.tolist() == [0.0, 0.5, 1.0]


def test_one_span_for_a_layer():
    made = AdaptiveSpan(num_heads=K, max_span=L, ramp=R, span_init=5, per_layer=True)
    assert made.spans(torch.zeros(2, 4)).tolist() == [[6.0], [6.0]]


def test_span_limit_only_when_scoring():
    made = policy(span_limit=3)
    assert made.train().spans(torch.zeros(1, 5)).tolist() == [[1.0, 6.0, 11.0]]
    assert made.eval().spans(torch.zeros(1, 5)).tolist() == [[1.0, 3.0, 3.0]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_span": 0}, "at least 1, got 0"),
        ({"ramp": 0}, "at least 1, got 0"),
        ({"span_init": 11}, "expected 0 to max_span = 10, got 11"),
        ({"span_limit": 0}, "at least 1 or none, got 0"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSpan(**{"num_heads": K, "max_span": L, "ramp": R, **settings})
