"""The fast attention against the loops: values, every gradient, and what a query that sees nothing gets."""

import pytest
import torch

from fairseq_expire.modules import attend, naive

# B, K, T, M, d, P: one query, no memory, no position in reach, odd sizes.
SIZES = [(1, 1, 1, 0, 1, 1), (2, 3, 5, 7, 3, 4), (1, 2, 4, 11, 2, 1), (3, 1, 7, 2, 5, 64), (2, 2, 1, 9, 4, 3)]


def problem(size, seed=0):
    """Random inputs with holes in the memory, as deletion leaves them, and masks of 0, 1 and in between."""
    batch, heads, block, held, width, reach = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    slots = held + block
    age = torch.stack([torch.randperm(3 * held, generator=generator)[:held].sort(descending=True).values + 1 for _ in range(batch)])
    age = torch.cat([age, -torch.arange(block).expand(batch, block)], dim=1)
    distance = age.unsqueeze(1) + torch.arange(block).view(1, block, 1)
    mask = torch.rand(batch, block, slots, dtype=torch.float64, generator=generator)
    mask = torch.where(mask < 0.3, 0.0, torch.where(mask > 0.6, 1.0, mask)) * (distance >= 1)
    return dict(
        query=normal(batch, heads, block, width),
        key=normal(batch, heads, slots, width),
        value=normal(batch, heads, slots, width),
        mask=mask.requires_grad_(),
        distance=distance,
        position=normal(reach, width),
    )


def fast(problem):
    mask = problem["mask"]
    seen = mask > 0
    bias = torch.where(seen, mask, 1.0).log().masked_fill(~seen, float("-inf"))
    arguments = {name: problem[name] for name in ("query", "key", "value", "distance", "position")}
    return attend(**arguments, bias=bias.unsqueeze(1))


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}-K{}-T{}-M{}-d{}-P{}".format(*s))
def test_values_and_gradients_equal_the_loops(size):
    inputs = problem(size)
    expected, actual = naive.attend(**inputs), fast(inputs)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names = ["query", "key", "value", "mask", "position"]
    leaves = [inputs[name] for name in names]
    slow_grads = torch.autograd.grad((expected * weights).sum() + 0 * sum(x.sum() for x in leaves), leaves)
    fast_grads = torch.autograd.grad((actual * weights).sum(), leaves)
    for name, slow, quick in zip(names, slow_grads, fast_grads):
        # At m = 0 the loops skip the memory; neither gives a gradient to what is not seen.
        torch.testing.assert_close(quick, slow, msg=lambda text: f"{name}: {text}")


def test_gradcheck():
    inputs = problem((2, 2, 3, 4, 2, 3))
    mask = inputs["mask"].detach()

    def attention(query, key, value, bias, position):
        return attend(query, key, value, bias=bias, distance=inputs["distance"], position=position)

    bias = torch.randn(mask.shape, dtype=torch.float64).unsqueeze(1).requires_grad_()
    assert torch.autograd.gradcheck(
        attention, (inputs["query"], inputs["key"], inputs["value"], bias, inputs["position"])
    )


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_query_that_sees_nothing_gets_zeros_and_no_nan(device, dtype):
    inputs = {name: x.detach().to(device, dtype if x.is_floating_point() else x.dtype) for name, x in problem((2, 2, 4, 3, 4, 2)).items()}
    blind = torch.zeros_like(inputs["mask"])
    blind[0] = inputs["mask"][0]
    inputs["mask"] = blind
    for name in ("query", "key", "value", "mask", "position"):
        inputs[name].requires_grad_()
    out = fast(inputs)
    out.float().sum().backward()
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    for name in ("query", "key", "value", "mask", "position"):
        assert torch.isfinite(inputs[name].grad).all(), name
