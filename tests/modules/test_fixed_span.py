import pytest
import torch

from fairseq_expire.modules import FixedSpan, LayerMemory


def view_of(policy, ages, block=2):
    age = torch.tensor([ages + [-n for n in range(block)]])
    distance = age.unsqueeze(1) + torch.arange(block).view(1, block, 1)
    states = torch.zeros(1, len(ages) + block, 4)
    return policy.view(states, distance, padding=None, shortening=None), LayerMemory(states, age + block)


def test_sees_the_last_steps_and_never_itself():
    view, candidates = view_of(FixedSpan(max_span=3), [4, 3, 2, 1])
    assert view.visible.tolist() == [[[False, True, True, True, False, False], [False, False, True, True, True, False]]]
    assert torch.equal(view.bias.squeeze(1) == 0, view.visible)
    assert view.penalty is None
    _, keep = FixedSpan(max_span=3).retain(candidates, view)
    assert keep.tolist() == [[False, False, False, True, True, True]]


def test_span_limit_only_when_scoring():
    policy = FixedSpan(max_span=3, span_limit=1)
    assert view_of(policy.train(), [2, 1])[0].visible.sum() == 3 + 2
    assert view_of(policy.eval(), [2, 1])[0].visible.sum() == 1 + 1


@pytest.mark.parametrize("settings", [{"max_span": 0}, {"max_span": 4, "span_limit": 0}])
def test_bad_arguments(settings):
    with pytest.raises(ValueError, match="at least 1"):
        FixedSpan(**settings)
