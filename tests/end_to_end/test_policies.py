"""The other memory policies with fairseq's commands: trained, scored and logged as Expire-Span is."""

import math

import commands
import doc_pages
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
    """Architecture, checkpoint and output of a training run."""
    arch, folder = request.param.partition("-")[0], tmp_path_factory.mktemp(request.param)
    output = commands.train(data_bin, folder, *ARCHS[request.param], arch=arch, updates=40)
    return request.param, folder / "checkpoint_last.pt", output


def test_scores_equal_those_of_a_reader_that_keeps_everything(run, data_bin):
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
    output = commands.train(
        data_bin, tmp_path, "--expire-loss-weight", "1", *options, arch="adaptive_span_lm", updates=30
    )
    steps = commands.logged(output, "train_inner")
    assert steps[0]["span_mean"] == pytest.approx(21, abs=0.1)
    # Only the youngest state is left, and what is on the ramp.
    assert steps[-1]["span_mean"] == 1
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    ratios = [value for name, value in state.items() if name.endswith("policy.ratio")]
    assert len(ratios) == 2 and all(ratio.tolist() == [0.0, 0.0] for ratio in ratios)


def test_a_policy_of_ones_own_takes_one_file_and_one_registration(data_bin, tmp_path):
    """The example of docs/architecture.md is trained, logs its memory, and is scored as by a reader that keeps all.

    The criterion of that page is used, too.
    """
    folder = tmp_path / "loud_states"
    folder.mkdir()
    page = doc_pages.ROOT / "docs/architecture.md"
    policy, registration, package = doc_pages.section_blocks(page, "Add a memory", "python")
    [criterion] = doc_pages.section_blocks(page, "Add a loss", "python")
    (folder / "__init__.py").write_text(package)
    (folder / "loud_states_lm.py").write_text(policy + registration + criterion)
    output = commands.train(
        data_bin,
        tmp_path,
        "--user-dir",
        folder,
        "--criterion",
        "smoothed_expire_span_loss",
        arch="loud_states_lm",
        updates=20,
    )
    assert 5 < commands.logged(output, "train_inner")[-1]["span_mean"] < 64

    def mask_of(weights, states, distance):
        span = (states[:, 0] > 0) * 59 + 5
        return (distance <= span[None, :]).astype(float)

    checkpoint = tmp_path / "checkpoint_last.pt"
    expected, _ = reader_loss(data_bin, checkpoint, 1, mask_of=mask_of)
    assert exact_loss(data_bin, checkpoint, "--user-dir", folder) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - reader_loss(data_bin, checkpoint, 1, mask_of=reader.fixed_span_mask(max_span=64))[0]) > 1e-4
