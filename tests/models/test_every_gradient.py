import pytest
import torch

from fairseq_expire.models.every_gradient import with_every_gradient
from fairseq_expire.modules import LayerReport


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_what_a_criterion_leaves_out_gets_a_gradient_and_changes_nothing(size):
    """Also where its loss, in half precision, overflows: 300 squared does."""
    learned = torch.full((2, 1), size, dtype=torch.float16, requires_grad=True)
    report = LayerReport(
        span=torch.zeros(2, 3, 1),
        penalty=None,
        count_seen=lambda: torch.zeros(2, 3).long(),
        reconstruction=learned.square().sum(dim=1),
    )
    assert report.reconstruction.isfinite().all() == (size == 1)
    features = torch.ones(2, 3, 4, requires_grad=True)
    out = with_every_gradient(features, [report], None)
    assert torch.equal(out, features)
    out.sum().backward()
    assert torch.equal(learned.grad, torch.zeros_like(learned)) and torch.equal(
        features.grad, torch.ones_like(features)
    )
