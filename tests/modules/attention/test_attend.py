"""The one way in: which implementation runs, and arguments that do not fit."""

import re

import pytest
import torch
from attention_problems import LEAVES, Size, by_reference, fast, problem

from fairseq_expire.modules.attention import reference, tiled

SIZE = Size(2, 3, 1, 5, 7, 3, 4, 3)


@pytest.fixture
def called(monkeypatch):
    """The names of the implementations called."""
    names = []
    for module in (reference, tiled):
        name, attend = module.__name__.rpartition(".")[2], module.attend
        monkeypatch.setattr(
            module,
            "attend",
            lambda *args, name=name, attend=attend, **options: names.append(name) or attend(*args, **options),
        )
    return names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_cpu_takes_the_fast_path(called, dtype):
    inputs = problem(SIZE)
    inputs.update({name: inputs[name].detach().to(dtype) for name in LEAVES if name != "span"})
    assert fast(inputs).dtype == dtype
    assert called == ["tiled"]


def test_other_devices_take_the_reference(called):
    """Meta tensors have a shape and nothing else: the fast path would look at their values."""
    inputs = {name: x.to("meta") if torch.is_tensor(x) else x for name, x in problem(SIZE).items()}
    out = fast(inputs)
    assert out.shape == inputs["query"].shape and out.device.type == "meta"
    assert called == ["reference"]


def test_other_types_take_the_reference(called):
    inputs = problem(SIZE)
    expected = by_reference(inputs)
    called.clear()
    torch.testing.assert_close(fast({**inputs, "value": inputs["value"].float()}), expected.float())
    assert called == ["reference"]


@pytest.mark.parametrize("counts", [(3,), (3, 4, 5), (3, 8), (-1, 3)], ids=str)
def test_more_memories_than_there_are_is_refused(counts):
    message = f"expected a number from 0 to 7 for each of 2 rows, got {list(counts)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        fast(problem(SIZE), counts=counts)


def test_the_fast_path_has_no_second_derivatives():
    inputs = problem(SIZE)
    out = fast(inputs).sum()
    with pytest.raises(RuntimeError, match=re.escape("first derivatives only, and create_graph=True asks for more")):
        torch.autograd.grad(out, inputs["query"], create_graph=True)
