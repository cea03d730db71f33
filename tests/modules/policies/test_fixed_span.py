"""States that a fixed span shows and keeps."""

import pytest
import torch

from fairseq_expire.modules import FixedSpan, LayerMemory


def test_sees_the_last_steps_and_keeps_no_more():
    policy = FixedSpan(max_span=3)
    states, age = torch.zeros(1, 5, 4), torch.tensor([[5, 4, 3, 2, 1]])
    visibility = policy.visibility(policy.spans(states), LayerMemory.from_tensors(age=age, inputs=states), block=0)
    full, gone = 0.0, float("-inf")
    assert visibility.bias(0, 2).tolist() == [[[[gone, gone, full, full, full], [gone, gone, gone, full, full]]]]
    keep = policy.retain(visibility)
    assert keep.tolist() == [[False, False, True, True, True]]


def test_span_limit_only_when_scoring():
    policy = FixedSpan(max_span=3, span_limit=1)
    assert policy.train().spans(torch.zeros(2, 4)).tolist() == [[3], [3]]
    assert policy.eval().spans(torch.zeros(2, 4)).tolist() == [[1], [1]]


@pytest.mark.parametrize("settings", [{"max_span": 0}, {"max_span": 4, "span_limit": 0}])
def test_bad_arguments(settings):
    with pytest.raises(ValueError, match="at least 1"):
        FixedSpan(**settings)
