"""``fairseq-eval-lm`` and ``fairseq-validate`` score every token as an independent reader that keeps all states."""

import re
import shutil

import commands
import numpy as np
import pytest
import reader
import torch
from scoring import exact_loss, reader_loss

from fairseq_expire import load


@pytest.mark.parametrize(
    "rows, options",
    [
        (1, []),
        (8, ["--batch-size", "8"]),
        (1, ["--tokens-per-sample", "7"]),
        (8, ["--batch-size", "8", "--max-tokens", "100"]),
    ],
    ids=["default", "8-rows", "short-blocks", "8-rows-short-blocks"],
)
def test_equals_a_reader_that_keeps_everything(data_bin, checkpoint, rows, options):
    expected, _ = reader_loss(data_bin, checkpoint, rows)
    assert exact_loss(data_bin, checkpoint, *options) == pytest.approx(expected, abs=1e-6)


def test_command_prints_the_loss_over_all_tokens(data_bin, checkpoint, corpus):
    tokens, bits = commands.scored(commands.score(data_bin, checkpoint))
    assert tokens == (corpus / "test.txt").stat().st_size == 3001
    assert bits == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-4)


def test_span_limit(data_bin, checkpoint):
    loss = exact_loss(data_bin, checkpoint, "--model-overrides", "{'span_limit': 5}")
    assert loss == pytest.approx(reader_loss(data_bin, checkpoint, 1, limit=5)[0], abs=1e-6)
    assert abs(loss - reader_loss(data_bin, checkpoint, 1)[0]) > 1e-4


def test_memory_budget(data_bin, checkpoint, corpus):
    """Eleven memories, where spans of up to 256 steps would hold more."""
    settings = torch.load(checkpoint, weights_only=True)["cfg"]["model"]
    mask_of = reader.expire_span_mask(max_span=settings["max_span"], ramp=settings["span_ramp"], budget=11)
    expected, tokens = reader_loss(data_bin, checkpoint, 1, mask_of=mask_of)
    assert abs(expected - reader_loss(data_bin, checkpoint, 1)[0]) > 1e-4
    overrides = ["--model-overrides", "{'memory_budget': 11}"]
    assert exact_loss(data_bin, checkpoint, *overrides) == pytest.approx(expected, abs=1e-6)
    assert exact_loss(data_bin, checkpoint, *overrides, "--tokens-per-sample", "7") == pytest.approx(expected, abs=1e-6)
    model = load(checkpoint, data=data_bin, memory_budget=11)
    score = model.score((corpus / "test.txt").read_bytes())
    assert score.bits / tokens == pytest.approx(expected, abs=1e-6)
    stats = commands.validate(data_bin, checkpoint, "--batch-size", "1", *overrides)
    assert 0 < stats["memory_size"] <= 11 and stats["cut_by_budget"] > 0


def test_validate_agrees_without_the_penalty(data_bin, checkpoint):
    stats = commands.validate(data_bin, checkpoint, "--batch-size", "1")
    assert stats["nll_loss"] == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-3)
    assert stats["loss"] > stats["nll_loss"]
    assert stats["memory_size"] > 0 and stats["span_max"] <= 256
    # Other blocks than the 32 tokens of training.
    eight = commands.validate(
        data_bin, checkpoint, "--batch-size", "8", "--num-workers", "2", "--tokens-per-sample", "50"
    )
    assert eight["nll_loss"] == pytest.approx(reader_loss(data_bin, checkpoint, 8)[0], abs=1e-3)


def test_shards_share_the_tokens(data_bin, checkpoint):
    """Two shards of one row each score the same as one process with two rows."""
    parts = [
        commands.scored(commands.score(data_bin, checkpoint, "--num-shards", "2", "--shard-id", shard))
        for shard in (0, 1)
    ]
    assert sum(tokens for tokens, _ in parts) == 3001
    mean = sum(tokens * bits for tokens, bits in parts) / 3001
    assert mean == pytest.approx(reader_loss(data_bin, checkpoint, 2)[0], abs=1e-3)


def test_units_that_results_are_published_in(data_bin, checkpoint):
    """Bits per byte come from the scorer's log-probabilities in double precision."""
    output = commands.score(data_bin, checkpoint, "--tokens-per-sample", "100", "--softmax-batch", "64")
    bits = float(re.search(r"test: ([\d.]+) bits per byte over 3,001 bytes", output).group(1))
    assert bits == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-4)
    assert "newlines are symbols" in output
    # They are not printed for a part of the text.
    assert "bits per byte" not in commands.score(data_bin, checkpoint, "--num-shards", "2", "--shard-id", "1")


def with_tokens(data_bin, dest, token):
    """Copies the data, with some tokens of each split changed, and without a manifest, like fairseq-preprocess."""
    shutil.copytree(data_bin, dest)
    (dest / "manifest.json").unlink()
    for split in ("train", "valid", "test"):
        tokens = np.fromfile(dest / f"{split}.bin", dtype=np.uint16)
        tokens[[0, 40, 41, 700, len(tokens) - 1]] = token
        tokens.tofile(dest / f"{split}.bin")
    return dest


def test_padding_in_the_text_is_unknown_text(data_bin, tmp_path):
    """Tokens `<pad>` are learnt and scored as if they were `<unk>`, and the log says so once for each split."""
    results = []
    for name, token in (("pad", 1), ("unk", 3)):
        data = with_tokens(data_bin, tmp_path / name, token)
        said = commands.train(data, tmp_path / f"save_{name}", "--num-workers", "2", updates=8)
        losses = [(step["loss"], step["wps"] > 0) for step in commands.logged(said, "train_inner")]
        scored = commands.score(data, tmp_path / f"save_{name}" / "checkpoint_last.pt", "--batch-size", "3")
        results.append((losses, commands.scored(scored)))
        for output, splits in ((said, ["train", "valid"]), (scored, ["test"])):
            warned = re.findall(r"token 0 of .*/(\w+)\.bin is the padding symbol", output)
            assert sorted(warned) == (splits if token == 1 else [])
    assert results[0] == results[1] and results[0][1][0] == 3001
