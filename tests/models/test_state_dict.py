"""State dicts as numbers: whatever averages, interpolates or decays weights can do so with all that is in one."""

import copy
from collections import Counter

import commands
import pytest
import torch
from building import build
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema import build_ema

LARGE = ["--adaptive-input", "--adaptive-input-cutoff", "20,40", "--adaptive-softmax-cutoff", "20,40"]
TIED = [*LARGE, "--tie-adaptive-weights", "--tie-adaptive-proj"]
MODELS = {
    "expire": ("expire_span_lm", ["--span-shortening"]),
    "expire-large": ("expire_span_lm", LARGE),
    "expire-tied": ("expire_span_lm", TIED),
    "shared": ("transformer_xl_lm", ["--share-decoder-input-output-embed", "--decoder-normalize-before"]),
    "adaptive": ("adaptive_span_lm", []),
    "adaptive-layer": ("adaptive_span_lm", ["--adapt-span-layer", *LARGE]),
    "mean": ("compressive_transformer_lm", []),
    "max": ("compressive_transformer_lm", ["--compression", "max", *TIED]),
}


def make(name, seed):
    arch, given = MODELS[name]
    torch.manual_seed(seed)
    return build(*commands.MODEL, "--max-span", "64", *given, arch=arch)


@pytest.mark.parametrize("name", MODELS)
def test_all_is_floating_point(name):
    assert {value.dtype for value in make(name, 0).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", MODELS)
def test_averages_and_differences_load(name):
    first, second, model = make(name, 0), make(name, 1), make(name, 2)
    average = {key: (value + second.state_dict()[key]) / 2 for key, value in first.state_dict().items()}
    model.load_state_dict(average, strict=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, average[key], rtol=0, atol=0)
    # As finetuning tools do with what they made of a model.
    model.half().load_state_dict({key: value.half() for key, value in average.items()}, strict=True)


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_moving_averages(name, fp32):
    """fairseq's: after the first update it lies where the decay says, and it loads back."""
    model = make(name, 0)
    ema = build_ema(model, EMAConfig(store_ema=True, ema_decay=0.75, ema_fp32=fp32), None)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.step(model, 1)
    own = dict(model.named_parameters(remove_duplicate=False))
    times = Counter(map(id, own.values()))
    for key, value in ema.get_model().state_dict().items():
        # fairseq counts a weight of two names twice.
        if key in own and times[id(own[key])] == 1:
            torch.testing.assert_close(value, before[key] + 0.25)
    other = make(name, 1)
    ema.reverse(other)
    tokens = torch.randint(4, 100, (2, 9))
    torch.testing.assert_close(other.eval()(tokens)[0], ema.get_model().eval()(tokens)[0])
