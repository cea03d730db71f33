"""Attention of any size, values and all gradients: the fast path and the reference, the reference and the loops."""

import pytest
import torch
from attention_problems import EMPTY_AGE, LEAVES, check, check_reference, hidden, small_tiles, without_fused_kernel
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.modules.attention import tiled

SMALL = st.integers(1, 3)
SEED = st.integers(0, 2**20)
# How the fast path computes: scores and queries of a tile and floats of a cache line, sorting, the kernel, the type.
WAYS = {
    "cut": st.sampled_from([(1 << 20, 128, 1), (400, 4, 4), (60, 2, 1), (1, 3, 16)]),
    "sorts": st.booleans(),
    "kernel": st.booleans(),
    "dtype": st.sampled_from([torch.float64, torch.float32]),
}
MEMORIES = {
    "rows": SMALL,
    "heads": SMALL,
    "shared": st.booleans(),
    "block": st.integers(1, 7),
    "memory": st.integers(0, 12),
    "width": st.integers(1, 4),
    "positions": st.sampled_from([1, 1, 2, 3, 6, 20]),
    "ramp": st.sampled_from([1, 1.5, 2, 5, 30]),
    "max_distance": st.none() | st.integers(1, 20),
    "scale": st.sampled_from([0.0, 0.5, 2.0, 1000.0]),
    "holes": st.sampled_from([0, 0, 3, 12]),
    "bounds": st.booleans(),
    "seed": SEED,
}
STRIDED = {
    "rows": st.integers(1, 2),
    "heads": st.integers(1, 2),
    "block": st.integers(1, 6),
    "states_until": st.integers(1, 8),
    "stride": st.integers(2, 4),
    "size": st.integers(1, 4),
    "phase": st.integers(0, 3),
    "width": st.integers(1, 3),
    "positions": st.integers(1, 16),
    "max_distance": st.none() | st.integers(1, 20),
    "bounds": st.booleans(),
    "seed": SEED,
}


def check_fast_path(inputs, cut, sorts, kernel, dtype):
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch, *cut)
        if not sorts:
            patch.setattr(tiled, "MIN_QUERIES_TO_SORT", 1 << 20)
        if not kernel:
            without_fused_kernel(patch)
        check(inputs, dtype)


def tensors(generator, *, rows, heads, spans, block, keys, width, positions):
    """Queries, keys, values and positions, and spans around 0."""

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "query": normal(rows, heads, block, width),
        "key": normal(rows, heads, keys, width),
        "value": normal(rows, heads, keys, width),
        "position": normal(positions, width),
        "span": normal(rows, spans, keys),
    }


def with_gradients(inputs):
    return {name: x.requires_grad_() if name in LEAVES else x for name, x in inputs.items()}


def any_memory(rows, heads, shared, block, memory, width, positions, ramp, max_distance, scale, holes, bounds, seed):
    """With holes and empty slots, spans that end at any time, padding, a limit of distance, bounds of each key."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "rows": rows,
        "heads": heads,
        "block": block,
        "keys": memory + block,
        "width": width,
        "positions": positions,
    }
    inputs = tensors(generator, spans=1 if shared else heads, **sizes)
    counts = torch.randint(0, memory + 1, (rows,), generator=generator)
    padded = torch.randint(0, block, (rows,), generator=generator)
    age = torch.zeros(rows, memory + block, dtype=torch.int64)
    for row in range(rows):
        remembered = torch.randperm(int(counts[row]) + holes, generator=generator)[: counts[row]]
        remembered = remembered.sort(descending=True).values + 1
        age[row, :memory] = torch.cat([torch.full((memory - len(remembered),), EMPTY_AGE), remembered])
        age[row, memory:] = -torch.arange(block)
        age[row, memory + block - padded[row] :] = EMPTY_AGE
    # Ends around the block, on whole steps and between them, and in numbers that both precisions have.
    end = (inputs["span"] * scale * (block + ramp)).mul(8).round().div(8)
    inputs["span"] = end + age.clamp(0, 3 * memory).unsqueeze(1)
    inputs.update(age=age, ramp=ramp, max_distance=max_distance, counts=counts.tolist())
    return with_gradients(hidden(inputs, seed) if bounds else inputs)


def any_strided_memory(
    rows, heads, block, states_until, stride, size, phase, width, positions, max_distance, bounds, seed
):
    """States up to a distance, behind them keys that stand for several; more of these come while the block is read."""
    generator = torch.Generator().manual_seed(seed)
    # The oldest state of the youngest group is the last that goes while the block is read.
    youngest = states_until - block + 2 + phase % stride
    begins = youngest + stride * torch.arange(size + block // stride)
    states = torch.arange(min(states_until, 6), 0, -1)
    age = torch.cat([begins, states, -torch.arange(block)])
    several = torch.zeros(len(age), dtype=torch.bool)
    several[: len(begins)] = True
    sizes = {"rows": rows, "heads": heads, "block": block, "keys": len(age), "width": width, "positions": positions}
    inputs = tensors(generator, spans=1, **sizes)
    span = torch.where(several, float(states_until + size * stride), float(states_until))
    inputs["span"] = span.expand(rows, 1, -1).double().contiguous()
    nearest = (several * states_until + 1).expand(rows, -1)
    inputs.update(age=age.expand(rows, -1), ramp=1, min_distance=nearest, stride=stride, max_distance=max_distance)
    return with_gradients(hidden(inputs, seed) if bounds else inputs)


def test_fast_path_with_any_memory(long):
    def at(cut, sorts, kernel, dtype, **drawn):
        check_fast_path(any_memory(**drawn), cut, sorts, kernel, dtype)

    fuzz(at, examples=200, long=long, **MEMORIES, **WAYS)


def test_fast_path_with_any_strided_memory(long):
    def at(cut, sorts, kernel, dtype, **drawn):
        check_fast_path(any_strided_memory(**drawn), cut, sorts, kernel, dtype)

    fuzz(at, examples=100, long=long, **STRIDED, **WAYS)


def test_reference_with_any_memory(long):
    fuzz(lambda **drawn: check_reference(any_memory(**drawn)), examples=80, long=long, **MEMORIES)


def test_reference_with_any_strided_memory(long):
    fuzz(lambda **drawn: check_reference(any_strided_memory(**drawn)), examples=40, long=long, **STRIDED)
