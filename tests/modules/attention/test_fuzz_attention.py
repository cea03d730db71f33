"""Attention at any size, against the loops: values and every gradient."""

import pytest
import torch
from attention_by_loops import check, small_pieces, without_fused_kernel
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.modules.attention import inputs as attention_inputs
from fairseq_expire.modules.memory import EMPTY_AGE

SMALL = st.integers(1, 3)
SEED = st.integers(0, 2**20)
# How attention is cut (scores and queries of a piece, floats of a cache line), whether with memories in order, by the kernel, in what
# precision.
WAYS = dict(
    cut=st.sampled_from([(1 << 20, 128, 1), (400, 4, 4), (60, 2, 1), (1, 3, 16)]),
    ordered=st.booleans(),
    kernel=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)


def compare(inputs, cut, ordered, kernel, dtype):
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, *cut)
        if not ordered:
            patch.setattr(attention_inputs, "FEWEST_ARRANGED", 1 << 20)
        if not kernel:
            without_fused_kernel(patch)
        check(inputs, dtype)


def tensors(generator, *, rows, heads, spans, block, slots, width, reach):
    """Queries, keys, values and positions, and spans around 0."""

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return dict(
        query=normal(rows, heads, block, width),
        key=normal(rows, heads, slots, width),
        value=normal(rows, heads, slots, width),
        position=normal(reach, width),
        span=normal(rows, spans, slots),
    )


def leaves(inputs):
    return {
        name: x.requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()
    }


def test_any_memory(long):
    """With holes and empty slots, spans that end at any time, padding behind a row, a longest distance."""

    def at(
        rows, heads, shared, block, memory, width, reach, ramp, longest, scale, holes, seed, cut, ordered, kernel, dtype
    ):
        generator = torch.Generator().manual_seed(seed)
        spans = 1 if shared else heads
        inputs = tensors(
            generator, rows=rows, heads=heads, spans=spans, block=block, slots=memory + block, width=width, reach=reach
        )
        held = torch.randint(0, memory + 1, (rows,), generator=generator)
        padded = torch.randint(0, block, (rows,), generator=generator)
        age = torch.zeros(rows, memory + block, dtype=torch.int64)
        for row in range(rows):
            own = (
                torch.randperm(int(held[row]) + holes, generator=generator)[: held[row]].sort(descending=True).values
                + 1
            )
            age[row, :memory] = torch.cat([torch.full((memory - len(own),), EMPTY_AGE), own])
            age[row, memory:] = -torch.arange(block)
            age[row, memory + block - padded[row] :] = EMPTY_AGE
        # Ends around the block, on whole steps and between them, and in numbers that both precisions have.
        end = (inputs["span"] * scale * (block + ramp)).mul(8).round().div(8)
        inputs["span"] = end + age.clamp(0, 3 * memory).unsqueeze(1)
        inputs.update(age=age, ramp=ramp, max_distance=longest, counts=held.tolist())
        compare(leaves(inputs), cut, ordered, kernel, dtype)

    fuzz(
        at, examples=150, long=long, rows=SMALL, heads=SMALL, shared=st.booleans(), block=st.integers(1, 7),
        memory=st.integers(0, 12), width=st.integers(1, 4), reach=st.sampled_from([1, 1, 2, 3, 6, 20]),
        ramp=st.sampled_from([1, 1.5, 2, 5, 30]),
        longest=st.none() | st.integers(1, 20), scale=st.sampled_from([0.0, 0.5, 2.0, 1000.0]),
        holes=st.sampled_from([0, 0, 3, 12]), seed=SEED, **WAYS,
    )  # fmt: skip


def test_any_compressed_memory(long):
    """States up to a distance, behind them compressed ones, of which the next come while the block is read."""

    def at(rows, heads, block, after, rate, size, phase, width, reach, longest, seed, cut, ordered, kernel, dtype):
        generator = torch.Generator().manual_seed(seed)
        # The oldest state of the youngest group is the last that goes while the block is read.
        youngest = after - block + 2 + phase % rate
        begins = youngest + rate * torch.arange(size + block // rate)
        states = torch.arange(min(after, 6), 0, -1)
        age = torch.cat([begins, states, -torch.arange(block)])
        slots = torch.zeros(len(age), dtype=torch.bool)
        slots[: len(begins)] = True
        inputs = tensors(
            generator, rows=rows, heads=heads, spans=1, block=block, slots=len(age), width=width, reach=reach
        )
        inputs["span"] = (
            torch.where(slots, float(after + size * rate), float(after)).expand(rows, 1, -1).double().contiguous()
        )
        nearest = (slots * after + 1).expand(rows, -1)
        inputs.update(age=age.expand(rows, -1), ramp=1, min_distance=nearest, stride=rate, max_distance=longest)
        compare(leaves(inputs), cut, ordered, kernel, dtype)

    fuzz(
        at, examples=80, long=long, rows=st.integers(1, 2), heads=st.integers(1, 2), block=st.integers(1, 6),
        after=st.integers(1, 8), rate=st.integers(2, 4), size=st.integers(1, 4), phase=st.integers(0, 3),
        width=st.integers(1, 3), reach=st.integers(1, 16), longest=st.none() | st.integers(1, 20), seed=SEED, **WAYS,
    )  # fmt: skip
