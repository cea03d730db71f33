"""Parameters with bounds under fairseq's optimizers, with float32 copies as fairseq makes them on a GPU."""

import pytest
import torch
from fairseq.optim.fp16_optimizer import FP16Optimizer

from fairseq_expire.fairseq_patches.bounds import keep_bounds_with_copies
from fairseq_expire.modules import AdaptiveSpan, ExpireSpan


def model():
    made = torch.nn.ModuleList(
        [torch.nn.Linear(3, 2), AdaptiveSpan(num_heads=2, max_span=100, ramp=4), torch.nn.Linear(2, 1)]
    )
    made.append(AdaptiveSpan(num_heads=2, max_span=100, ramp=4, per_layer=True))
    for parameter in made.parameters():
        torch.nn.init.uniform_(parameter, -3, 3)
    made[1].ratio.data = torch.tensor([-0.25, 0.12345])
    made[3].ratio.data = torch.tensor([1.5])
    return made


def optimizer(**attributes):
    """Makes an optimizer with these attributes. Its constructor would need a GPU."""
    made = object.__new__(FP16Optimizer)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def check(made):
    assert made[1].ratio.tolist() == pytest.approx([0.0, 0.12345], abs=1e-4)
    assert made[3].ratio.tolist() == [1.0]


@pytest.mark.parametrize("flat", [False, True])
def test_float32_copies_are_clamped_and_stay_exact(flat):
    made = model()
    exact = [parameter.detach().clone() for parameter in made.parameters()]
    others = [parameter.detach().clone() for parameter in (*made[0].parameters(), *made[2].parameters())]
    made.half()
    parameters = list(made.parameters())
    # One flat copy for each device index, which a CPU does not have.
    copies = {None: torch.nn.Parameter(torch.cat([x.flatten() for x in exact]))} if flat else exact
    keep_bounds_with_copies(optimizer(fp16_params=parameters, fp32_params=copies), made)
    check(made)
    parts = copies[None].split([x.numel() for x in exact]) if flat else copies
    # Not rounded to half precision on the way.
    assert parts[2].tolist() == torch.tensor([0.0, 0.12345]).tolist()
    assert parts[5].tolist() == [1.0]
    for part, other in zip((*parts[:2], *parts[3:5]), others):
        assert torch.equal(part.view_as(other), other)


def test_an_optimizer_without_copies():
    made = model()
    keep_bounds_with_copies(None, made)
    check(made)


def test_a_policy_without_bounds_is_left_alone():
    made = ExpireSpan(embed_dim=3, max_span=9, ramp=2, span_init=4)
    torch.nn.init.constant_(made.predictor.weight, 7)
    keep_bounds_with_copies(None, made)
    assert made.predictor.weight.tolist() == [[7, 7, 7]]
