"""The other ways to remember, through fairseq's commands: trained, scored, logged as Expire-Span is."""

import math

import commands
import pytest
import reader
import torch
from scoring import exact_loss, reader_loss

ARCHS = {
    "transformer_xl_lm": [],
    "adaptive_span_lm": [],
    "adaptive_span_lm-layer": ["--adapt-span-layer"],
    "compressive_transformer_lm-mean": [],
    "compressive_transformer_lm-max": ["--compression", "max", "--compression-rate", "3"],
}


@pytest.fixture(scope="module", params=ARCHS)
def run(request, data_bin, tmp_path_factory):
    """(architecture, checkpoint, output of training)."""
    arch, folder = request.param.partition("-")[0], tmp_path_factory.mktemp(request.param)
    output = commands.train(data_bin, folder, *ARCHS[request.param], arch=arch, updates=40)
    return request.param, folder / "checkpoint_last.pt", output


def test_scored_as_by_a_reader_that_keeps_everything(run, data_bin):
    _, checkpoint, _ = run
    expected, tokens = reader_loss(data_bin, checkpoint, 1)
    assert tokens == 3001
    for block in (None, "100"):
        options = [] if block is None else ["--tokens-per-sample", block]
        assert exact_loss(data_bin, checkpoint, *options) == pytest.approx(expected, abs=1e-6)


def test_learns_and_logs_under_the_same_names(run, trained):
    _, _, output = run
    steps, theirs = commands.logged(output, "train_inner"), commands.logged(trained[1], "train_inner")
    assert steps[-1]["nll_loss"] < steps[0]["nll_loss"] - 1
    assert set(steps[-1]) == set(theirs[-1])
    assert all(math.isfinite(value) for value in steps[-1].values() if isinstance(value, float))


def test_a_price_shortens_adaptive_spans_and_no_step_takes_them_out_of_range(data_bin, tmp_path):
    options = ["--disable-validation", "--lr", "0.05"]
    dear = commands.train(
        data_bin, tmp_path, "--expire-loss-weight", "1", *options, arch="adaptive_span_lm", updates=30
    )
    steps = commands.logged(dear, "train_inner")
    assert steps[0]["span_mean"] == pytest.approx(21, abs=0.1)
    # Only the youngest state, and what lies on the ramp.
    assert steps[-1]["span_mean"] == 1
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    ratios = [value for name, value in state.items() if name.endswith("policy.ratio")]
    assert len(ratios) == 2 and all(ratio.tolist() == [0.0, 0.0] for ratio in ratios)


TOY = """
import torch
from dataclasses import dataclass
from fairseq.models import register_model
from fairseq_expire.models.memory_lm import MemoryLanguageModel, MemoryLMConfig
from fairseq_expire.modules import MemoryPolicy

class LoudStates(MemoryPolicy):
    def __init__(self, max_span):
        super().__init__(ramp=1)
        self.max_span = max_span

    def spans(self, states):
        loud = states[..., :1] > 0
        return torch.where(loud, float(self.max_span), 5.0).to(torch.promote_types(states.dtype, torch.float32))

@dataclass
class LoudStatesLMConfig(MemoryLMConfig):
    pass

@register_model("loud_states_lm", dataclass=LoudStatesLMConfig)
class LoudStatesLanguageModel(MemoryLanguageModel):
    @classmethod
    def make_policy(cls, cfg):
        return lambda: LoudStates(cfg.max_span)
"""


def test_a_policy_of_ones_own_takes_one_file_and_one_registration(data_bin, tmp_path):
    """As CONTRIBUTING.md says: trained, its memory logged, and scored as by a reader that keeps everything."""
    folder = tmp_path / "loud_states"
    folder.mkdir()
    (folder / "__init__.py").write_text("import fairseq_expire\nfrom . import loud_states_lm\n")
    (folder / "loud_states_lm.py").write_text(TOY)
    output = commands.train(data_bin, tmp_path, "--user-dir", folder, arch="loud_states_lm", updates=20)
    assert 5 < commands.logged(output, "train_inner")[-1]["span_mean"] < 64

    def mask_of(weights, states, distance):
        span = (states[:, 0] > 0) * 59 + 5
        return (distance <= span[None, :]).astype(float)

    checkpoint = tmp_path / "checkpoint_last.pt"
    expected, _ = reader_loss(data_bin, checkpoint, 1, mask_of=mask_of)
    assert exact_loss(data_bin, checkpoint, "--user-dir", folder) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - reader_loss(data_bin, checkpoint, 1, mask_of=reader.fixed_span_mask(max_span=64))[0]) > 1e-4
