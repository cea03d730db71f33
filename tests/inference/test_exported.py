"""Exported models on systems without fairseq, POSIX or float64: Windows, Macs and their GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import POLICIES, text_model
from torch.overrides import TorchFunctionMode

import fairseq_expire
from fairseq_expire.inference.folder import write_folder

ROOT = Path(__file__).parents[2]
TEXT = "some text, some other text\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported model of words, whose data needs no manifest, and the model itself."""
    folder = tmp_path_factory.mktemp("exported")
    words = ["some", "text,", "other", "text"]
    (folder / "bin").mkdir()
    (folder / "bin/dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    model = text_model(level="words", symbols=words)
    write_folder(folder / "model", model.model, folder / "bin", version="0", force=False)
    return folder / "model", model


def test_an_export_gives_the_same_results(exported):
    folder, model = exported
    loaded = fairseq_expire.load(folder)
    assert np.array_equal(loaded.score(TEXT).token_bits, model.score(TEXT).token_bits)
    assert "".join(loaded.generate("some ", seed=3)) == "".join(model.generate("some ", seed=3))


def test_loading_needs_nothing_of_posix(exported, tmp_path):
    script = f"""
import os, sys
for name in ("fairseq", "fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
import torch
for name in ("sysconf", "sched_getaffinity", "fork", "getuid"):
    delattr(os, name)
import fairseq_expire
model = fairseq_expire.load({str(exported[0])!r})
model.score({TEXT!r})
stream = model.stream()
stream.feed("some ")
stream.save("state")
model.stream().restore("state")
print("".join(model.generate("some ", max_tokens=5, seed=1)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


class NoFloat64(TorchFunctionMode):
    """Refuses float64 as a device without it does, except in tensors that `cpu()` gave and their results."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            # A view, because `cpu()` of a CPU tensor is the tensor itself.
            result = result.view_as(result)
        on_cpu = function is torch.Tensor.cpu or any(getattr(arg, "on_cpu", False) for arg in args)
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and on_cpu:
                tensor.on_cpu = True
            elif isinstance(tensor, torch.Tensor):
                assert tensor.dtype != torch.float64, f"{function} makes float64"
        return result


@pytest.mark.parametrize("policy", POLICIES)
def test_no_float64_on_the_device(policy):
    model = text_model(policy)
    expected = (
        model.score(TEXT).token_bits,
        "".join(model.generate("so", max_tokens=20, seed=1, top_k=5, top_p=0.9, utf8=True)),
    )
    with NoFloat64():
        assert np.array_equal(model.score(TEXT).token_bits, expected[0])
        assert "".join(model.generate("so", max_tokens=20, seed=1, top_k=5, top_p=0.9, utf8=True)) == expected[1]
        stream = model.stream()
        stream.feed(TEXT)
        stream.next_distribution().top(3)


def test_the_float64_check_works():
    with NoFloat64(), pytest.raises(AssertionError, match="makes float64"):
        torch.ones(2).double()
    with NoFloat64():
        assert torch.ones(2).cpu().double().sum() == 2
