"""Spans, soft mask, penalty and deletion of Expire-Span, against the loops."""

import math

import pytest
import torch

from fairseq_expire.modules import ExpireSpan, LayerMemory
from fairseq_expire.modules.attention import loops as naive

D = 6


def policy(**changes):
    settings = {"embed_dim": D, "max_span": 40, "ramp": 7, "span_init": 10.0}
    module = ExpireSpan(**{**settings, **changes}).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(module.predictor.weight)
    return module


def candidates(batch=2, block=5, memories=9):
    torch.manual_seed(1)
    states = torch.randn(batch, memories + block, D, dtype=torch.float64)
    age = torch.cat([torch.arange(4 * memories, 0, -4), -torch.arange(block)]).expand(batch, -1)
    distance = age.unsqueeze(1) + torch.arange(block).view(1, block, 1)
    return states, age, distance


def test_spans_start_at_span_init():
    module = ExpireSpan(embed_dim=D, max_span=4096, ramp=16, span_init=100.0)
    spans = module.spans(torch.randn(2, 3, D))
    torch.testing.assert_close(spans, torch.full((2, 3, 1), 100.0))


def test_spans_follow_the_equation():
    module = policy(input_scale=2.5)
    states, _, _ = candidates()
    score = (states / 2.5) @ module.predictor.weight[0] + module.predictor.bias
    torch.testing.assert_close(module.spans(states).squeeze(-1), 40 / (1 + torch.exp(-score)))


def visibility_of(module, states, age, block, shortening=None):
    spans = module.shorten(module.spans(states), shortening)
    return module.visibility(spans, LayerMemory.from_tensors(age=age, inputs=states), block=block)


def penalty_of(module, states, age, block, shortening=None, padding=None):
    return module.penalty(visibility_of(module, states, age, block, shortening), padding=padding)


@pytest.mark.parametrize("shortening", [None, 0.0, 0.3])
def test_mask_sizes_and_penalty_equal_the_loops(shortening):
    module = policy()
    states, age, distance = candidates()
    charged = module.shorten(module.spans(states), shortening)
    if shortening is not None:
        torch.testing.assert_close(charged, module.spans(states).clamp(max=shortening * 40))
    mask, penalty = naive.expire_span_view(charged.squeeze(-1), distance, ramp=7)
    visibility = visibility_of(module, states, age, 5, shortening)
    torch.testing.assert_close(visibility.bias(0, 5).squeeze(1).exp2(), mask)
    assert torch.equal(visibility.sizes(), (mask > 0).sum(dim=-1))
    torch.testing.assert_close(penalty_of(module, states, age, 5, shortening), penalty)


def test_padding_queries_are_not_charged():
    module = policy()
    states, age, distance = candidates()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 3:] = True
    penalty = naive.expire_span_view(module.spans(states).squeeze(-1), distance[:, :3], ramp=7).penalty
    torch.testing.assert_close(penalty_of(module, states, age, 5, padding=padding), penalty)


def test_gradient_of_the_penalty():
    module = policy()
    states, age, _ = candidates(batch=1, block=3, memories=4)
    assert torch.autograd.gradcheck(lambda states: penalty_of(module, states, age, 3), (states.requires_grad_(),))


def test_kept_until_no_later_query_sees_it():
    """At its last visible distance a memory is kept, one step later it is gone."""
    module = policy()
    state = torch.randn(1, 1, D, dtype=torch.float64)
    spans = module.spans(state)
    last = math.ceil(spans.item() + 7) - 1
    for steps, expected in [(last, True), (last + 1, False)]:
        age = torch.tensor([[steps]])
        visibility = visibility_of(module, state, age, 0)
        assert module.retain(visibility).item() is expected
        assert (visibility.bias(0, 1) > float("-inf")).item() is expected


def test_span_limit_cuts_only_when_scoring():
    module = policy(span_limit=3)
    states, _, _ = candidates()
    assert module.train().spans(states).max() > 3
    assert module.eval().spans(states).max() == 3


def test_shortening_is_drawn_only_when_asked_for():
    assert policy().draw_shortening() is None
    assert 0 <= policy(shortening=True).draw_shortening() < 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_span": 0}, "max_span"),
        ({"ramp": 0}, "ramp"),
        ({"ramp": -3}, "ramp"),
        ({"span_init": 0}, "span_init"),
        ({"span_init": 40}, "less than max_span = 40, got 40"),
        ({"input_scale": 0}, "input"),
        ({"span_limit": 0}, "span_limit"),
    ],
)
def test_bad_arguments(changes, words):
    with pytest.raises(ValueError, match=words):
        policy(**changes)
