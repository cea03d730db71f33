import pytest
import torch

from fairseq_expire.modules import FixedSpan, LayerMemory
from fairseq_expire.modules.visibility import soft_mask_bias, steps_left


def test_sees_the_last_steps_and_keeps_no_more():
    policy = FixedSpan(max_span=3)
    states, age = torch.zeros(1, 5, 4), torch.tensor([[5, 4, 3, 2, 1]])
    left = steps_left(policy.spans(states).transpose(1, 2), age, ramp=policy.ramp)
    full, gone = 0.0, float("-inf")
    assert soft_mask_bias(left, 0, 2, ramp=policy.ramp).tolist() == [
        [[[gone, gone, full, full, full], [gone, gone, gone, full, full]]]
    ]
    _, keep = policy.retain(LayerMemory(states, age), policy.spans(states))
    assert keep.tolist() == [[False, False, True, True, True]]


def test_span_limit_only_when_scoring():
    policy = FixedSpan(max_span=3, span_limit=1)
    assert policy.train().spans(torch.zeros(2, 4)).tolist() == [[3], [3]]
    assert policy.eval().spans(torch.zeros(2, 4)).tolist() == [[1], [1]]


@pytest.mark.parametrize("settings", [{"max_span": 0}, {"max_span": 4, "span_limit": 0}])
def test_bad_arguments(settings):
    with pytest.raises(ValueError, match="at least 1"):
        FixedSpan(**settings)
