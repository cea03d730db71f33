"""Windows, soft masks and positions against a loop over all pairs of query and key."""

import re

import pytest
import torch
from attention_problems import CASES, visibility_of

from fairseq_expire.modules.attention import loops
from fairseq_expire.modules.visibility import Visibility

# Queries behind the block until all keys of the cases have expired.
LATER = 40

CASE = pytest.mark.parametrize("case", CASES)


def masks(inputs, queries):
    """[B, H, queries, S]: m by the definition, 0 where a hard bound hides the key."""
    span, age, block = inputs["span"].detach(), inputs["age"], inputs["query"].size(2)
    mask = span.new_zeros(*span.shape[:2], queries, span.size(2))
    for b, h, t, i in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        distance = int(age[b, i]) + t
        near = inputs["min_distance"][b, i] if "min_distance" in inputs else 1
        # A bound behind the block says no more than that the query after the block may see the key.
        hidden_from = int(inputs["hidden_from"][b, i]) if "hidden_from" in inputs else block + 1
        hidden = hidden_from <= block and t >= hidden_from
        if near <= distance <= inputs.get("max_distance", float("inf")) and not hidden:
            mask[b, h, t, i] = loops.soft_mask(span[b, h, i], distance, inputs["ramp"])
    return mask


@pytest.fixture(scope="module")
def expected():
    """The masks of every case, of the block's queries and those to come."""
    return {case: masks(inputs, inputs["query"].size(2) + LATER) for case, inputs in CASES.items()}


@CASE
def test_masks(case, expected):
    visibility = visibility_of(CASES[case]).detach()
    for start, stop in [(0, visibility.block), (visibility.block // 2, visibility.block)]:
        mask = expected[case][:, :, start:stop]
        torch.testing.assert_close(visibility.soft_mask(start, stop), mask)
        torch.testing.assert_close(visibility.bias(start, stop).exp2(), mask)


@CASE
def test_window(case, expected):
    visibility = visibility_of(CASES[case])
    mask = expected[case]
    block, later = mask[:, :, : visibility.block], mask[:, :, visibility.block :]
    visible = (block > 0).any(dim=1)  # [B, T, S]
    steps = torch.arange(visibility.block).view(1, -1, 1)
    inside = (visibility.first.unsqueeze(1) <= steps) & (steps < visibility.end.unsqueeze(1))
    assert torch.equal(inside, visible)
    assert torch.equal(visibility.sizes(), visible.sum(dim=-1))
    assert torch.equal(visibility.fully_visible, (block == 1).all(dim=2).all(dim=1))
    assert torch.equal(visibility.visible_later, (later > 0).any(dim=2).any(dim=1))


@CASE
def test_queries_on_the_ramp(case, expected):
    visibility = visibility_of(CASES[case])
    block = expected[case][:, :, : visibility.block]
    on_ramp = (block > 0) & (block < 1)
    assert torch.equal(visibility.queries_on_ramp(), on_ramp.sum(dim=2))
    padding = torch.zeros(block.size(0), visibility.block, dtype=torch.bool)
    padding[0, 1:] = True
    counted = on_ramp & ~padding[:, None, :, None]
    assert torch.equal(visibility.queries_on_ramp(padding), counted.sum(dim=2))


@CASE
def test_slope_is_the_gradient_of_the_logarithm(case):
    visibility = visibility_of(CASES[case])
    mask = visibility.soft_mask(0, visibility.block)
    (by_mask,) = torch.autograd.grad(torch.where(mask > 0, mask, 1).log().sum(), CASES[case]["span"])
    slope = visibility.slope(0, visibility.block).masked_fill(mask == 0, 0).sum(dim=2)
    torch.testing.assert_close(slope, by_mask)


@CASE
def test_positions(case):
    inputs = CASES[case]
    index = visibility_of(inputs).position_index(0, 3)
    for b, t, i in torch.cartesian_prod(*(torch.arange(n) for n in index.shape)).tolist():
        distance = int(inputs["age"][b, i]) + t
        nearest = int(inputs["min_distance"][b, i]) if "min_distance" in inputs else 1
        expected = nearest + (distance - nearest) // inputs["stride"] if nearest > 1 else distance
        assert index[b, t, i] == expected


@CASE
@pytest.mark.parametrize("part", ["memories", "until-the-second-token", "a-few-of-both"])
def test_select(case, part):
    inputs = CASES[case]
    visibility = visibility_of(inputs).detach()
    keys = visibility.age.size(1)
    slots, block = keys - visibility.block, visibility.block
    stop = {"memories": slots, "until-the-second-token": min(keys, slots + 2), "a-few-of-both": keys}[part]
    start = 0 if part != "a-few-of-both" else slots // 2
    part = visibility.select(slice(1), slice(start, stop))
    # Only queries whose past holds all of the part's own tokens but the last are asked about it.
    first = max(0, min(stop - slots - 1, block - 1))
    assert torch.equal(part.bias(first, block), visibility.bias(first, block)[:1, :, :, start:stop])
    assert torch.equal(part.end, visibility.end[:1, start:stop])
    assert torch.equal(part.first, visibility.first[:1, start:stop])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"span": torch.zeros(2, 1, 6)}, "expected span [B, H, S] and age [B, S], got [2, 1, 6] and [2, 5]"),
        ({"span": torch.zeros(2, 5)}, "expected span [B, H, S] and age [B, S], got [2, 5] and [2, 5]"),
        ({"age": torch.zeros(2, 5)}, "expected an int64 tensor, got torch.float32"),
        ({"min_distance": torch.ones(1, 5)}, "expected one for each key, as age [2, 5], got [1, 5]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message):
    fitting = {"span": torch.zeros(2, 1, 5), "age": torch.zeros(2, 5, dtype=torch.int64), "block": 2, "ramp": 3}
    with pytest.raises(ValueError, match=re.escape(message)):
        Visibility.of(**{**fitting, **changes})
