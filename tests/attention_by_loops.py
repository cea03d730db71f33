"""The fast attention against the loops of modules/naive.py."""

import torch

from fairseq_expire.modules import attend
from fairseq_expire.modules.attention import (
    fused,
)
from fairseq_expire.modules.attention import (
    inputs as attention_inputs,
)
from fairseq_expire.modules.attention import (
    loops as naive,
)
from fairseq_expire.modules.attention import (
    memory_order as arrangement,
)
from fairseq_expire.modules.attention import (
    tiles as pieces,
)
from fairseq_expire.modules.visibility import Visibility

LEAVES = ["query", "key", "value", "span", "position"]
WINDOW = ["span", "age", "ramp", "max_distance", "min_distance", "stride"]


def slow(inputs):
    """What attention over ``inputs``, the arguments of ``attend``, gives by the loops, a head at a time."""
    heads = inputs["query"].size(1)
    block = inputs["query"].size(2)
    age = inputs["age"]
    distance = age.unsqueeze(1) + torch.arange(block).view(1, block, 1)
    outs = []
    for head in range(heads):
        span = inputs["span"][:, head if inputs["span"].size(1) > 1 else 0]
        mask, _ = naive.expire_span_view(span, distance, ramp=inputs["ramp"])
        back = distance
        if inputs.get("max_distance") is not None:
            mask = mask * (distance <= inputs["max_distance"])
        if inputs.get("min_distance") is not None:
            nearest, stride = inputs["min_distance"].unsqueeze(1), inputs["stride"]
            mask = mask * (distance >= nearest)
            # The first of them stays at its nearest position for as long as it takes the next one to come.
            back = torch.where(nearest > 1, nearest + (distance - nearest) // stride, distance)
        states = {name: inputs[name][:, head : head + 1] for name in ("query", "key", "value")}
        outs.append(naive.attend(**states, mask=mask, distance=back, position=inputs["position"]))
    return torch.cat(outs, dim=1)


def fast(inputs, **options):
    """What the fast attention over the same ``inputs`` gives."""
    inputs = {**inputs, **options}
    window = {name: inputs.pop(name) for name in WINDOW if name in inputs}
    return attend(**inputs, visibility=Visibility.of(**window, block=inputs["query"].size(2)))


def small_pieces(monkeypatch, scores, queries, line=1):
    """Pieces of few scores and queries, cache lines of few floats; memories are put in order for a single query, and a kernel is called
    for a single one."""
    monkeypatch.setattr(attention_inputs, "FEWEST_ARRANGED", 1)
    monkeypatch.setattr(pieces, "CACHE_LINE", line)
    monkeypatch.setattr(arrangement, "FEWEST_STEADY", 1)
    monkeypatch.setattr(attention_inputs, "SCORES_ON_CPU", scores)
    monkeypatch.setattr(attention_inputs, "QUERIES_ON_CPU", queries)
    monkeypatch.setattr(pieces, "FEWEST_QUERIES", 1)


def without_fused_kernel(monkeypatch):
    monkeypatch.setattr(fused, "_kernel_works", lambda dtype: False)


def check(inputs, dtype=torch.float64):
    """Values and every gradient against the loops, which compute in float64."""
    ours = {**inputs, **{name: inputs[name].detach().to(dtype).requires_grad_() for name in LEAVES}}
    expected, actual = slow(inputs), fast(ours)
    _assert_close("values", actual, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaves = [inputs[name] for name in LEAVES]
    slow_grads = torch.autograd.grad((expected * weights).sum() + 0 * sum(x.sum() for x in leaves), leaves)
    fast_grads = torch.autograd.grad((actual * weights.to(dtype)).sum(), [ours[name] for name in LEAVES])
    for name, by_loops, quick in zip(LEAVES, slow_grads, fast_grads):
        _assert_close(name, quick, by_loops)


def _assert_close(name, ours, expected):
    tolerance = {}
    if ours.dtype == torch.float32:
        # A gradient may be the small difference of large ones.
        tolerance = dict(rtol=1e-4, atol=1e-5 * max(1.0, expected.abs().amax().item() if expected.numel() else 0.0))
    torch.testing.assert_close(ours.double(), expected, **tolerance, msg=lambda text: f"{name}: {text}")
