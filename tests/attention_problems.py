"""One attention problem computed three ways: by loops, by the reference, and by the fast path.

A problem is a dict of the arguments of ``attend``, and of those of its visibility.
"""

from typing import NamedTuple

import torch

from fairseq_expire.modules import attend
from fairseq_expire.modules.attention import fused, loops, memory_order, reference, tiled, tiles
from fairseq_expire.modules.visibility import Visibility

LEAVES = ["query", "key", "value", "span", "position"]
# Of slots that hold nothing and of padding: far above every span.
EMPTY_AGE = 1 << 40
WINDOW = ["span", "age", "ramp", "max_distance", "min_distance", "hidden_from", "stride"]


class Size(NamedTuple):
    """B rows, K heads, H heads of a span, T queries, M memories, d width of a head, P positions, R ramp."""

    B: int
    K: int
    H: int
    T: int
    M: int
    d: int
    P: int
    R: int

    def __str__(self):
        return "-".join(f"{name}{value}" for name, value in self._asdict().items())


# One query, no memory, no position within reach, a hard edge, positions beyond everything, a span for each head, odd
# sizes.
SIZES = [
    Size(1, 1, 1, 1, 0, 1, 1, 1),
    Size(2, 3, 1, 5, 7, 3, 4, 3),
    Size(1, 2, 2, 4, 11, 2, 1, 6),
    Size(3, 1, 1, 7, 2, 5, 64, 2),
    Size(2, 2, 2, 1, 9, 4, 3, 5),
    Size(2, 2, 1, 9, 5, 4, 6, 1),
    Size(3, 2, 1, 17, 23, 3, 8, 9),
]


def problem(size, seed=0):
    """Random inputs with holes in the memory, as deletion leaves them, and spans of which many end in this block."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    slots = size.M + size.T
    age = [
        torch.randperm(3 * size.M, generator=generator)[: size.M].sort(descending=True).values + 1
        for _ in range(size.B)
    ]
    age = torch.cat([torch.stack(age), -torch.arange(size.T).expand(size.B, size.T)], dim=1)
    span = torch.rand(size.B, size.H, slots, dtype=torch.float64, generator=generator) * (size.T + 2 * size.R)
    return {
        "query": normal(size.B, size.K, size.T, size.d),
        "key": normal(size.B, size.K, slots, size.d),
        "value": normal(size.B, size.K, slots, size.d),
        "age": age,
        "span": (span - size.R + age.unsqueeze(1).clamp(min=0)).requires_grad_(),
        "ramp": size.R,
        "position": normal(size.P, size.d),
    }


def strided_problem(stride, position_range):
    """Keys that stand for several states: some not yet seen, one of this block's own tokens among them, and not in the
    order of time."""
    states_until, block, states, strided = 6, 7, 6, 10
    inputs = problem(Size(2, 2, 1, block, states + strided, 3, position_range, 2))
    begins = states_until + block - stride * torch.arange(strided) + 3
    age = torch.cat([torch.arange(states, 0, -1), begins, -torch.arange(block)]).expand(2, -1)
    several = torch.zeros_like(age, dtype=torch.bool)
    several[:, states : states + strided] = True
    assert (begins <= 0).any() and (begins + block - 1 <= states_until).any()
    with torch.no_grad():
        # The states are gone when the others come.
        inputs["span"].copy_(torch.where(several, 15.0, states_until - 1.0).unsqueeze(1))
    return {**inputs, "age": age, "min_distance": several * states_until + 1, "stride": stride}


def per_head(inputs):
    """Spans that differ from head to head by a few steps."""
    heads = inputs["query"].size(1)
    span = inputs["span"].detach() + 2.3 * torch.arange(heads).view(1, heads, 1)
    return {**inputs, "span": span.requires_grad_()}


def empty_row(inputs):
    """The first row sees nothing, the second has empty slots in front."""
    age = inputs["age"].clone()
    age[0] = EMPTY_AGE
    age[1, :3] = EMPTY_AGE
    return {**inputs, "age": age}


def padded(inputs):
    """The first row has no token behind its second one."""
    age, block = inputs["age"].clone(), inputs["query"].size(2)
    age[0, age.size(1) - block + 2 :] = EMPTY_AGE
    return {**inputs, "age": age}


def hidden(inputs, seed=0):
    """A bound of each key's own: some are never seen, some to the end of the block and beyond it."""
    block = inputs["query"].size(2)
    bounds = torch.randint(0, block + 2, inputs["age"].shape, generator=torch.Generator().manual_seed(seed))
    return {**inputs, "hidden_from": bounds}


def whole_steps(inputs):
    """Spans that end exactly on a step, where the mask has kinks."""
    return {**inputs, "span": inputs["span"].detach().round().requires_grad_()}


ODD = Size(2, 3, 1, 5, 7, 3, 4, 3)
CASES = {
    **{str(size): problem(size) for size in SIZES},
    "a-span-for-each-head": per_head(problem(ODD)),
    "max-distance-3": {**problem(ODD), "max_distance": 3},
    "max-distance-9-a-span-for-each-head": {**per_head(problem(ODD)), "max_distance": 9},
    "hidden": hidden(problem(ODD)),
    "hidden-max-distance-9-a-span-for-each-head": {**hidden(per_head(problem(ODD))), "max_distance": 9},
    "hidden-strided-3-positions-8": hidden(strided_problem(3, 8)),
    "empty-row": empty_row(problem(ODD)),
    "padding": padded(problem(ODD)),
    "whole-steps": whole_steps(problem(ODD)),
    "whole-steps-ramp-1": whole_steps(problem(Size(2, 2, 1, 5, 7, 3, 4, 1))),
    "ramp-1.5": {**problem(ODD), "ramp": 1.5},
    "strided-2-positions-3": strided_problem(2, 3),
    "strided-3-positions-8": strided_problem(3, 8),
    "strided-2-positions-40-max-distance-9": {**strided_problem(2, 40), "max_distance": 9},
}


def visibility_of(inputs):
    window = {name: inputs[name] for name in WINDOW if name in inputs}
    return Visibility.of(**window, block=inputs["query"].size(2))


def _arguments(inputs):
    return {**{name: x for name, x in inputs.items() if name not in WINDOW}, "visibility": visibility_of(inputs)}


def fast(inputs, **options):
    return attend(**_arguments({**inputs, **options}))


def by_reference(inputs, **options):
    return reference.attend(**_arguments({**inputs, **options}))


def by_loops(inputs):
    """A head at a time."""
    block = inputs["query"].size(2)
    distance = inputs["age"].unsqueeze(1) + torch.arange(block).view(1, block, 1)
    outs = []
    for head in range(inputs["query"].size(1)):
        span = inputs["span"][:, head if inputs["span"].size(1) > 1 else 0]
        mask = loops.expire_span_view(span, distance, ramp=inputs["ramp"]).mask
        index = distance
        if inputs.get("max_distance") is not None:
            mask = mask * (distance <= inputs["max_distance"])
        if inputs.get("hidden_from") is not None:
            mask = mask * (torch.arange(block).view(1, block, 1) < inputs["hidden_from"].unsqueeze(1))
        if inputs.get("min_distance") is not None:
            nearest, stride = inputs["min_distance"].unsqueeze(1), inputs["stride"]
            mask = mask * (distance >= nearest)
            # The first of them stays at its nearest position for as long as it takes the next one to come.
            index = torch.where(nearest > 1, nearest + (distance - nearest) // stride, distance)
        states = {name: inputs[name][:, head : head + 1] for name in ("query", "key", "value")}
        outs.append(loops.attend(**states, mask=mask, index=index, position=inputs["position"]))
    return torch.cat(outs, dim=1)


def gradients(out, inputs):
    """Gradients of a weighted sum of the output by all leaves; zeros where it does not depend on a leaf."""
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    leaves = [inputs[name] for name in LEAVES]
    return dict(zip(LEAVES, torch.autograd.grad((out * weights).sum() + 0 * sum(x.sum() for x in leaves), leaves)))


def check_reference(inputs):
    """Values and every gradient of the reference against the loops."""
    _assert_equal(by_reference(inputs), by_loops(inputs), inputs, inputs)


def check(inputs, dtype=torch.float64):
    """Values and every gradient of the fast path against the reference, which computes in float64."""
    ours = {**inputs, **{name: inputs[name].detach().to(dtype).requires_grad_() for name in LEAVES}}
    _assert_equal(fast(ours), by_reference(inputs), ours, inputs)


def _assert_equal(actual, expected, actual_inputs, expected_inputs):
    pairs = {"values": (actual, expected)}
    expected_gradients = gradients(expected, expected_inputs)
    for name, gradient in gradients(actual, actual_inputs).items():
        pairs[name] = gradient, expected_gradients[name]
    for name, (ours, right) in pairs.items():
        tolerance = {}
        if ours.dtype == torch.float32:
            # A gradient may be the small difference of large ones.
            tolerance = {"rtol": 1e-4, "atol": 1e-5 * max(1.0, right.abs().amax().item() if right.numel() else 0.0)}
        torch.testing.assert_close(ours.double(), right, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def small_tiles(monkeypatch, scores, queries, line=1):
    """Makes tiles of few scores and queries, sorts memories for one query, calls the kernel for one memory.

    Cache lines have ``line`` floats.
    """
    monkeypatch.setattr(tiled, "MIN_QUERIES_TO_SORT", 1)
    monkeypatch.setattr(tiled, "MAX_SCORES_ON_CPU", scores)
    monkeypatch.setattr(tiled, "MAX_QUERIES_ON_CPU", queries)
    monkeypatch.setattr(tiles, "CACHE_LINE", line)
    monkeypatch.setattr(tiles, "MIN_QUERIES", 1)
    monkeypatch.setattr(memory_order, "MIN_FULLY_VISIBLE", 1)


def without_fused_kernel(monkeypatch):
    monkeypatch.setattr(fused, "_kernel_works", lambda dtype: False)
