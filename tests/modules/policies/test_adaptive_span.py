import pytest
import torch

from fairseq_expire.modules import AdaptiveSpan, LayerMemory, keep_bounds

L, R, K = 10, 4, 3


def policy(ratio=(0.0, 0.5, 1.0), **changes):
    made = AdaptiveSpan(**{"num_heads": K, "max_span": L, "ramp": R, **changes})
    made.ratio.data = torch.tensor(ratio)
    return made


def mask(made, block=1):
    """[K, T, S] of a block after a memory of 2 L."""
    age = torch.arange(2 * L, -block, -1).unsqueeze(0)
    spans = made.spans(torch.zeros(1, 2 * L + block, 5))
    sight = made.visibility(
        spans, LayerMemory.from_tensors(age=age, inputs=torch.zeros(1, 2 * L + block, 5)), block=block
    )
    return sight.bias(0, block).exp2().squeeze(0), sight, age


def test_mask_is_that_of_the_paper():
    """m_z(x) = min(max((R + z - x) / R, 0), 1) for x = 0 ... L - 1 steps behind the youngest."""
    actual, sight, age = mask(policy())
    distances = age.squeeze(0).tolist()
    for head, z in enumerate((0.0, 5.0, 10.0)):
        expected = [min(max((R + z - (n - 1)) / R, 0), 1) if 1 <= n <= L else 0 for n in distances]
        assert actual[head, 0].tolist() == pytest.approx(expected)
    assert sight.sizes().item() == L


@pytest.mark.parametrize("ratio, longest", [((0.0, 0.2, 0.5), 9), ((0.0, 0.8, 1.0), L), ((0.0, 0.0, 0.0), 4)])
def test_keeps_what_the_longest_head_can_see(ratio, longest):
    made = policy(ratio)
    age = torch.arange(2 * L, 0, -1).unsqueeze(0)
    states = torch.zeros(1, 2 * L, 5)
    keep = made.retain(made.visibility(made.spans(states), LayerMemory.from_tensors(age=age, inputs=states), block=0))
    assert age[keep].tolist() == list(range(longest, 0, -1))


def test_sizes_count_what_any_head_sees():
    made = policy((0.0, 0.2, 0.5))
    actual, sight, _ = mask(made, block=7)
    assert sight.sizes().tolist() == [(actual > 0).any(dim=0).sum(dim=-1).tolist()]


def test_penalty_is_the_mean_span_for_every_query():
    made = policy()
    states, age = torch.zeros(2, 6, 5), torch.tensor([[2, 1, 0, -1, -2, -3]] * 2)
    visibility = made.visibility(made.spans(states), LayerMemory.from_tensors(age=age, inputs=states), block=4)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
    penalty = made.penalty(visibility, padding=padding)
    assert penalty.tolist() == [4 * 5.0, 3 * 5.0]
    penalty.sum().backward()
    assert made.ratio.grad.tolist() == pytest.approx([7 * L / K] * K)


def test_parameters_leave_their_range_in_forward_and_are_brought_back_by_the_step():
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
