"""A parameter of the softmax that no target uses still gets a gradient, of zero."""

import torch

from fairseq_expire.models.every_gradient import with_every_gradient
from fairseq_expire.modules import AdaptiveSoftmax, Clusters


def test_unused_clusters_get_a_gradient_of_zero_and_change_nothing():
    """Also where a product with zero would be NaN: the features are infinite in one place."""
    softmax = AdaptiveSoftmax(vocab_size=20, embed_dim=4, clusters=Clusters((5, 10), 2.0))
    features = torch.ones(2, 3, 4)
    features[1, 2, 3] = torch.inf
    features.requires_grad_()
    out = with_every_gradient(features, softmax)
    assert torch.equal(out, features)
    out.sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))
    for parameter in softmax.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
