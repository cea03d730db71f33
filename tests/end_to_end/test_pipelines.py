"""Training and scoring of another architecture, and of data made by ``fairseq-preprocess``."""

import commands
import pytest
from scoring import exact_loss, reader_loss

WORDS = ["--adaptive-softmax-cutoff", "100,400", "--adaptive-input", "--adaptive-input-cutoff", "100,400",
         "--tie-adaptive-weights"]  # fmt: skip


def test_transformer_xl(data_bin, tmp_path):
    """It trains, remembers exactly its span, and is scored as by a reader that keeps everything."""
    output = commands.train(data_bin, tmp_path, "--tokens-per-sample", "50", arch="transformer_xl_lm")
    steps = commands.logged(output, "train_inner")
    assert steps[-1]["nll_loss"] < steps[0]["nll_loss"]
    assert steps[-1]["memory_size"] == steps[-1]["span_max"] == 64 and steps[-1]["expire_loss"] == 0
    checkpoint = tmp_path / "checkpoint_last.pt"
    expected, _ = reader_loss(data_bin, checkpoint, 1)
    assert exact_loss(data_bin, checkpoint) == pytest.approx(expected, abs=1e-6)


def test_fairseq_preprocess_words_and_adaptive_softmax(corpus, tmp_path):
    data = tmp_path / "words"
    files = [part for split in ("train", "valid", "test") for part in (f"--{split}pref", corpus / f"{split}.txt")]
    commands.run(commands.tool("fairseq-preprocess"), "--only-source", *files, "--destdir", data)
    output = commands.train(data, tmp_path / "ck", *WORDS, updates=30)
    steps, valid = commands.logged(output, "train_inner"), commands.logged(output, "valid")[-1]
    assert steps[-1]["nll_loss"] < steps[0]["nll_loss"] - 1
    assert "bpc" not in steps[-1], "nothing says that these are characters"
    words = len((corpus / "test.txt").read_text().split()) + (corpus / "test.txt").read_text().count("\n")
    tokens, bits = commands.scored(commands.score(data, tmp_path / "ck" / "checkpoint_best.pt"))
    # The last line ends in </s> even without a line break.
    assert tokens in (words, words + 1)
    stats = commands.validate(data, tmp_path / "ck" / "checkpoint_best.pt", "--batch-size", "1")
    assert stats["nll_loss"] == pytest.approx(bits, abs=2e-3)
    assert valid["valid_nll_loss"] > 0
