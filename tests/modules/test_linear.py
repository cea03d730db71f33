"""The quick way for a few vectors gives what ``nn.Linear`` gives."""

import pytest
import torch
from torch import nn

from fairseq_expire.modules.linear import FEW, Linear


@pytest.mark.parametrize("shape", [(0, 3), (1,), (1, 1), (2, 1), (5,), (4, FEW // 4), (FEW + 1,)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients(bias, shape):
    torch.manual_seed(0)
    quick = Linear(7, 11, bias=bias, dtype=torch.float64)
    plain = nn.Linear(7, 11, bias=bias, dtype=torch.float64)
    plain.load_state_dict(quick.state_dict())
    # With gaps, as a view has them.
    vectors = torch.randn(*shape, 14, dtype=torch.float64)[..., ::2]
    grad = torch.randn(*shape, 11, dtype=torch.float64)
    found = []
    for layer in (quick, plain):
        inputs = vectors.detach().requires_grad_()
        out = layer(inputs)
        out.backward(grad)
        assert out.is_contiguous()
        found.append([out, inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


def test_few_vectors_are_on_the_right(monkeypatch):
    """Else it would be ``nn.Linear`` and no quicker."""
    called = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, vectors: called.append(len(vectors)))
    for count in (1, 2, FEW, FEW + 1):
        Linear(7, 11)(torch.randn(count, 7))
    assert called == [1, FEW + 1]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_in_half_precision(bias):
    layer, vectors = Linear(7, 11, bias=bias), torch.randn(2, 3, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(vectors)
    under_autocast.sum().backward()
    torch.testing.assert_close(layer.weight.grad, vectors.sum(dim=(0, 1)).expand(11, 7), atol=0.05, rtol=0.05)
    for out in (under_autocast, layer.bfloat16()(vectors.bfloat16())):
        assert out.dtype == torch.bfloat16 and out.shape == (2, 3, 11)
        torch.testing.assert_close(out.float(), layer.float()(vectors), atol=0.03, rtol=0.03)
